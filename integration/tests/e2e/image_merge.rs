//! `image merge` makes of upstream's layers what upstream's `nydus-image merge` makes of them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use integration::{demo, gnu_tar, peers, process};
use rafs::blob::stream::own_bootstrap;
use rafs::build::{BuildOptions, build_layer};
use serde_json::Value;

use crate::fixture::Fixture;
use crate::image_commands::image;

pub(crate) fn as_upstream(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("merge")?;
    let lower = dir.join("lower");
    demo::special_files(&lower)?;
    fs::create_dir(lower.join("opaque"))?;
    fs::write(lower.join("opaque/hidden"), "hidden")?;
    fs::write(lower.join("deleted"), "deleted")?;
    let upper = dir.join("upper");
    fs::create_dir_all(upper.join("opaque"))?;
    fs::write(upper.join("opaque/.wh..wh..opq"), "")?;
    fs::write(upper.join("opaque/shown"), "shown")?;
    fs::write(upper.join(".wh.deleted"), "")?;
    fs::write(upper.join("added"), vec![b'y'; 1 << 20])?;

    let blobs = dir.join("blobs");
    fs::create_dir(&blobs)?;
    let mut layers = Vec::new();
    for layer in [&lower, &upper] {
        layers.push(upstream_layer(fixture, layer, &blobs)?);
    }
    // Upstream wants the bootstraps alone, in files named by their blobs.
    let bootstraps = dir.join("bootstraps");
    fs::create_dir(&bootstraps)?;
    let extracted = layers.iter().map(|layer| extract(layer, &bootstraps)).collect::<Result<Vec<_>>>()?;
    let theirs = dir.join("theirs.boot");
    process::run(
        Command::new(fixture.peers().nydus("nydus-image")?)
            .args(["merge", "--bootstrap"])
            .arg(&theirs)
            .args(&extracted),
    )?;

    for (name, files) in [("of-blobs.boot", &layers), ("of-bootstraps.boot", &extracted)] {
        let ours = dir.join(name);
        process::run(merge(files, &ours)?.args(["--prefetch", "/deep", "--prefetch", "/absent"]))?;
        let diff =
            process::run(image("diff", path(&theirs)?)?.arg(&ours).args(["--json", "--blobs"]).arg(&blobs))?;
        let diff: Value = serde_json::from_str(&diff.stdout)?;
        ensure!(diff["changes"] == Value::Array(Vec::new()), "{name}: {}", diff["changes"]);
        process::run(image("check", path(&ours)?)?.arg("--blobs").arg(&blobs))?;
        let inspection = process::run(image("inspect", path(&ours)?)?.arg("--json"))?;
        let inspection: Value = serde_json::from_str(&inspection.stdout)?;
        ensure!(inspection["prefetch"] == serde_json::json!(["/deep"]), "{inspection}");
        let accepted = process::run(
            Command::new(fixture.peers().nydus("nydus-image")?)
                .args(["check", "--bootstrap"])
                .arg(&ours)
                .arg("--blob-dir")
                .arg(&blobs),
        )?;
        ensure!(accepted.stdout.contains("RAFS filesystem metadata is valid"), "{}", accepted.stdout);
    }
    Ok(())
}

pub(crate) fn limits(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("merge-limits")?;
    let mut layers = Vec::new();
    for number in 0..255 {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(4);
        let content = format!("{number:4}");
        tar.append_data(&mut header, format!("file-{number}"), content.as_bytes())?;
        let mut blob = Vec::new();
        let layer = build_layer(&tar.into_inner()?[..], &mut blob, &BuildOptions::default())?;
        let id = layer.blobs[0].id.context("a finished blob has an id")?;
        let file = dir.join(id.to_string());
        fs::write(&file, blob)?;
        layers.push(file);
    }
    let output = dir.join("image.boot");
    process::run(&mut merge(&layers[..254], &output)?)?;
    fs::remove_file(&output)?;
    let refused = process::run_failing(&mut merge(&layers, &output)?)?;
    ensure!(refused.stderr.contains("more than 254 blobs"), "{}", refused.stderr);
    ensure!(!output.exists(), "what fails leaves nothing");
    let left = fs::read_dir(&dir)?.count();
    ensure!(left == layers.len(), "{left} files, {} of them layers", layers.len());

    let nameless = dir.join("layer.boot");
    fs::write(&nameless, fs::read(extract(&layers[0], &fixture.subdir("merge-extracted")?)?)?)?;
    let refused = process::run_failing(&mut merge(&[nameless], &output)?)?;
    ensure!(
        refused.stderr.contains("layer.boot") && refused.stderr.contains("SHA-256"),
        "{}",
        refused.stderr
    );
    Ok(())
}

/// Builds a directory with upstream's builder; the layer's blob, with its bootstrap in it.
fn upstream_layer(fixture: &Fixture, tree: &Path, blobs: &Path) -> Result<PathBuf> {
    let tar = tree.with_extension("tar");
    gnu_tar::pack(tree, &tar)?;
    let report = tree.with_extension("json");
    process::run(
        Command::new(fixture.peers().nydus("nydus-image")?)
            .args([
                "create",
                "--type",
                "tar-rafs",
                "--blob-inline-meta",
                "--features",
                "blob-toc",
                "--blob-dir",
            ])
            .arg(blobs)
            .arg("--output-json")
            .arg(&report)
            .arg(&tar),
    )?;
    let report: Value = serde_json::from_slice(&fs::read(report)?)?;
    let id = report["blobs"][0].as_str().context("nydus-image names the blob")?;
    Ok(blobs.join(id))
}

/// Takes the bootstrap out of a layer's blob, into a file of the same name.
fn extract(layer: &Path, dir: &Path) -> Result<PathBuf> {
    let file = File::open(layer)?;
    let read = |range: std::ops::Range<u64>| {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    };
    let own = own_bootstrap(file.metadata()?.len(), read)??.context("the blob has its layer's bootstrap")?;
    let extracted = dir.join(layer.file_name().context("a blob has a name")?);
    fs::write(&extracted, own.bytes)?;
    Ok(extracted)
}

fn merge(layers: &[PathBuf], output: &Path) -> Result<Command> {
    let mut command = Command::new(peers::nydus_cluster()?);
    command.args(["image", "merge"]).args(layers).arg("--output").arg(output);
    Ok(command)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}
