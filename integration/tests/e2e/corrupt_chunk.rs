//! A corrupted byte in the registry is an error on the file it belongs to, a log line, and never wrong data.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cri::ContainerSpec;
use integration::tree::content_digest;
use integration::{demo, wait};

use crate::fixture::{Fixture, nydus_layers};

const CHUNK_SIZE: u64 = 1 << 20;
/// In the second chunk of three.
const CORRUPTED_OFFSET: u64 = CHUNK_SIZE + CHUNK_SIZE / 2;
/// How soon after a read failed the log has to say why: another thread writes it.
const LOG_DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn one_file(fixture: &Fixture) -> Result<()> {
    let files = [("bad", 3 * CHUNK_SIZE), ("good", 3 * CHUNK_SIZE)];
    let context = demo::random_files(fixture.peers(), &fixture.subdir("corrupt")?, &files)?;
    let image = fixture.build(&context, "corrupt:v1")?;
    let blob = nydus_layers(&image.manifest)?.0[1].clone();
    let file = OpenOptions::new().read(true).write(true).open(fixture.registry()?.blob_file(&blob))?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, CORRUPTED_OFFSET)?;
    file.write_all_at(&[byte[0] ^ 0x40], CORRUPTED_OFFSET)?;

    let node = fixture.node()?;
    node.cri().pull(&image.name)?;
    let pod = node.pod("corrupt")?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new("reader", &image.name, &[]))?;
    let sum = |path: &str| node.cri().exec(&container, &["/bin/busybox", "sha256sum", path]);
    let bad = sum("/bad")?;
    ensure!(bad.code != 0, "a corrupted file was read: {bad:?}");
    ensure!(String::from_utf8_lossy(&bad.stderr).contains("Input/output error"), "not EIO: {bad:?}");
    let good = sum("/good")?.success()?;
    ensure!(good.starts_with(&content_digest(&context.join("good"))?), "the other file: {good}");
    // The sound first chunk of the bad file is still readable, and right.
    let head = node.cri().exec(&container, &["/bin/busybox", "sh", "-c", "head -c 4096 /bad | sha256sum"])?;
    let head = head.success()?;
    let expected = head_digest(&context.join("bad"))?;
    ensure!(head.starts_with(&expected), "the first bytes of the bad file: {head}, expected {expected}");
    let hex = blob.trim_start_matches("sha256:");
    let named = wait::until_true("the log names the chunk", LOG_DEADLINE, || {
        node.daemon_log().lines().any(|line| line.contains(hex) && line.contains("chunk"))
    });
    named.with_context(|| {
        format!("no line of the daemon's log names blob {hex} and the chunk:\n{}", node.daemon_log())
    })?;
    node.cri().remove_pod(&pod.id)
}

fn head_digest(path: &std::path::Path) -> Result<String> {
    let output = integration::process::run(
        std::process::Command::new("sh").args(["-c", "head -c 4096 \"$1\" | sha256sum", "sh"]).arg(path),
    )?;
    Ok(output.stdout.split(' ').next().unwrap_or_default().to_owned())
}
