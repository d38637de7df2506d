//! Upstream's `nydus-image`: the oracle of the format, in both directions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::image_files::ImageFiles;
use crate::peers::Peers;
use crate::process;

/// Upstream's command.
#[derive(Debug)]
pub struct NydusImage {
    program: PathBuf,
}

impl NydusImage {
    /// The one that `scripts/deps` built.
    pub fn new(peers: &Peers) -> Result<Self> {
        Ok(Self { program: peers.nydus("nydus-image")? })
    }

    fn command(&self, command: &str) -> Command {
        let mut program = Command::new(&self.program);
        program.args([command, "--log-level", "warn"]);
        program
    }

    /// Builds an image of `source` in `dir`, with further arguments. What `source` is follows from `--type`.
    pub fn create(&self, source: &Path, dir: &Path, arguments: &[&str]) -> Result<ImageFiles> {
        let files = ImageFiles { bootstrap: dir.join("image.boot"), blobs: dir.join("blobs") };
        fs::create_dir_all(&files.blobs)?;
        let mut command = self.command("create");
        command.args(arguments).arg("--bootstrap").arg(&files.bootstrap).arg("--blob-dir").arg(&files.blobs);
        process::run(command.arg(source))?;
        Ok(files)
    }

    /// Merges layers, the lowest first, whose blobs are all in `blobs`, into `dir`.
    pub fn merge(
        &self,
        layers: &[PathBuf],
        blobs: &Path,
        dir: &Path,
        arguments: &[&str],
    ) -> Result<ImageFiles> {
        fs::create_dir_all(dir)?;
        let files = ImageFiles { bootstrap: dir.join("merged.boot"), blobs: blobs.to_owned() };
        let mut command = self.command("merge");
        process::run(command.args(arguments).arg("--bootstrap").arg(&files.bootstrap).args(layers))?;
        Ok(files)
    }

    /// Fails unless upstream accepts the image. Gives what it says of it.
    pub fn check(&self, files: &ImageFiles) -> Result<Value> {
        let json = files.bootstrap.with_extension("check.json");
        let mut command = self.command("check");
        command.arg("--bootstrap").arg(&files.bootstrap).arg("--blob-dir").arg(&files.blobs);
        let output = process::run(command.arg("--output-json").arg(&json))?;
        ensure!(output.stdout.contains("RAFS filesystem metadata is valid"), "{output:?}");
        serde_json::from_slice(&fs::read(&json)?).context("what nydus-image check wrote")
    }

    /// Unpacks an image of one blob to a new tar: version 2.2 reads all chunks from the blob that it is given.
    pub fn unpack(&self, files: &ImageFiles, tar: &Path) -> Result<()> {
        let mut command = self.command("unpack");
        command.arg("--bootstrap").arg(&files.bootstrap).arg("--blob").arg(only_file(&files.blobs)?);
        process::run(command.arg("--output").arg(tar))?;
        Ok(())
    }

    /// The inodes that the bootstrap wants to be read first.
    pub fn prefetched(&self, files: &ImageFiles) -> Result<Value> {
        let mut command = self.command("inspect");
        let output = process::run(command.args(["--request", "prefetch"]).arg(&files.bootstrap))?;
        serde_json::from_str(&output.stdout)
            .with_context(|| format!("what nydus-image inspect said: {output:?}"))
    }
}

/// The only file in a directory.
pub fn only_file(dir: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(dir)?;
    let first = entries.next().ok_or_else(|| anyhow!("{} is empty", dir.display()))??;
    ensure!(entries.next().is_none(), "{} has more than one file", dir.display());
    Ok(first.path())
}
