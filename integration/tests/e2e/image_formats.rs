//! The image commands read what upstream makes in both versions of the format, and refuse by name what they cannot read.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use integration::{demo, process, tree};
use serde_json::Value;

use crate::fixture::Fixture;
use crate::image_commands::{expect_exit, image};

/// Offset in bytes of the flags of RAFS v6, and the flag of an encrypted image.
const FLAGS_OFFSET: usize = 1024 + 128;
const ENCRYPTION_AES_128_XTS: u64 = 0x0200_0000;

pub(crate) fn both_versions(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("formats")?;
    let tree = dir.join("tree");
    demo::special_files(&tree)?;
    let blobs = dir.join("blobs");
    fs::create_dir(&blobs)?;
    let v5 = upstream(fixture, &tree, &blobs, "5")?;
    let v6 = upstream(fixture, &tree, &blobs, "6")?;
    let expected = tree::list(&tree, tree::ListOptions { nanoseconds: false })?;
    for (version, bootstrap) in [(5, &v5), (6, &v6)] {
        let command = |name| -> Result<Command> {
            let mut command = image(name, text(bootstrap)?)?;
            command.arg("--blobs").arg(&blobs);
            Ok(command)
        };
        let inspection = process::run(command("inspect")?.arg("--json"))?.stdout;
        let inspection: Value = serde_json::from_str(&inspection)?;
        ensure!(inspection["rafs_version"] == version, "{inspection}");
        let chunks = process::run(command("inspect")?.args(["--json", "--file", "/deep/er/file"]))?.stdout;
        let chunks: Value = serde_json::from_str(&chunks)?;
        ensure!(chunks.as_array().map(Vec::len) == Some(3), "3 MiB are three chunks: {chunks}");
        expect_exit(0, &mut command("check")?)?;
        let unpacked = dir.join(format!("unpacked-{version}"));
        process::run(command("unpack")?.arg(&unpacked).arg("--directory"))?;
        let seen = tree::list(&unpacked, tree::ListOptions { nanoseconds: false })?;
        seen.without_mtimes().expect_same("unpacked", &expected.clone().without_mtimes(), "the tree")?;
    }
    let diff = process::run(image("diff", text(&v5)?)?.arg(&v6).args(["--json", "--blobs"]).arg(&blobs))?;
    let diff: Value = serde_json::from_str(&diff.stdout)?;
    ensure!(diff["changes"] == Value::Array(Vec::new()), "{}", diff["changes"]);
    ensure!(diff["fetch"]["stored_bytes"] != 0, "the blobs differ: {}", diff["fetch"]);
    Ok(())
}

pub(crate) fn encrypted(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("encrypted")?;
    let tree = dir.join("tree");
    demo::special_files(&tree)?;
    let bootstrap = upstream(fixture, &tree, &dir, "6")?;
    let mut bytes = fs::read(&bootstrap)?;
    let flags = bytes[FLAGS_OFFSET..][..8].first_chunk().context("eight bytes")?;
    let flags = u64::from_le_bytes(*flags) | ENCRYPTION_AES_128_XTS;
    bytes[FLAGS_OFFSET..][..8].copy_from_slice(&flags.to_le_bytes());
    fs::write(&bootstrap, bytes)?;
    let target = dir.join("target");
    for (code, command) in [
        (2, image("inspect", text(&bootstrap)?)?),
        (2, image("check", text(&bootstrap)?)?),
        (2, with(image("unpack", text(&bootstrap)?)?, &target)),
        (2, with(image("diff", text(&bootstrap)?)?, &bootstrap)),
        (2, with(with(image("merge", text(&bootstrap)?)?, Path::new("--output")), &target)),
    ] {
        let mut command = command;
        let refused = expect_exit(code, &mut command)?;
        ensure!(refused.stderr.contains("encrypted image"), "{command:?}: {}", refused.stderr);
        ensure!(!target.exists(), "{command:?} left {}", target.display());
    }
    Ok(())
}

fn with(mut command: Command, argument: &Path) -> Command {
    command.arg(argument);
    command
}

/// Builds a directory with upstream's builder; its bootstrap.
fn upstream(fixture: &Fixture, tree: &Path, blobs: &Path, version: &str) -> Result<PathBuf> {
    let bootstrap = blobs.join(format!("v{version}.boot"));
    process::run(
        Command::new(fixture.peers().nydus("nydus-image")?)
            .args(["create", "--type", "dir-rafs", "--fs-version", version, "--bootstrap"])
            .arg(&bootstrap)
            .arg("--blob-dir")
            .arg(blobs)
            .arg(tree),
    )?;
    Ok(bootstrap)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}
