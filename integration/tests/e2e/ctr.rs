//! `ctr` of containerd 2, which says less about an image than CRI does. That of 1.7 does not hand annotations of layers on,
//! so that a nydus image cannot be told from a plain one.

use std::process::Command;

use anyhow::{Result, ensure};
use integration::access_log::Request;
use integration::node::{Node, NodeOptions};
use integration::{demo, process};

use crate::fixture::{Built, Fixture, nydus_layers};

/// containerd knows which image was unpacked, and is asked.
pub(crate) fn without_annotations(fixture: &Fixture) -> Result<()> {
    runs(fixture, "ctr-asked", true)
}

/// From 2.1 on the transfer service says it, if told to.
pub(crate) fn with_annotations(fixture: &Fixture) -> Result<()> {
    runs(fixture, "ctr-told", false)
}

fn runs(fixture: &Fixture, name: &str, without_annotations: bool) -> Result<()> {
    let context = demo::random_files(fixture.peers(), &fixture.subdir(name)?, &[("data", 2 << 20)])?;
    let image = fixture.build(&context, &format!("{name}:v1"))?;
    let options = NodeOptions { without_annotations, ..NodeOptions::default() };
    let mut node = fixture.new_node_with(&format!("{name}-node"), options)?;
    let log = fixture.registry()?.access_log();
    let start = log.mark()?;
    process::run(ctr(&node, &["images", "pull"]).args(["--plain-http", &image.name]))?;
    let pulled = log.since(start)?;
    ensure!(read_blobs(&image, &pulled)?.is_empty(), "a blob was read on pull: {pulled:#?}");
    let start = log.mark()?;
    let output =
        process::run(ctr(&node, &["run"]).args(["--rm", "--null-io=false", &image.name, name]).args([
            "/bin/busybox",
            "sha256sum",
            "/data",
        ]))?;
    let expected = integration::tree::content_digest(&context.join("data"))?;
    ensure!(output.stdout.starts_with(&expected), "{}, expected {expected}", output.stdout);
    let read = log.since(start)?;
    ensure!(!read_blobs(&image, &read)?.is_empty(), "the file did not come from the registry: {read:#?}");
    let asked = node.snapshotter()?.server().log_text().contains("containerd knows the image");
    ensure!(asked == without_annotations, "containerd was asked: {asked}");
    Ok(())
}

fn ctr(node: &Node, command: &[&str]) -> Command {
    let mut ctr = node.containerd().ctr();
    ctr.args(command).args(["--snapshotter", node.containerd().snapshotter()]);
    ctr
}

fn read_blobs(image: &Built, requests: &[Request]) -> Result<Vec<String>> {
    let blobs = nydus_layers(&image.manifest)?.0;
    Ok(blobs.into_iter().filter(|blob| requests.iter().any(|request| request.reads_blob(blob))).collect())
}
