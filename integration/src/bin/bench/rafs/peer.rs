//! The other side: upstream's nydus-image, run as upstream's converters run it.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::peers::Peers;
use integration::process;
use rafs::blob::stream::own_bootstrap;
use rafs::digest::Digest;
use sha2::{Digest as _, Sha256};

/// What figures call it.
pub(super) const NAME: &str = "nydus-image 2.2";

/// nydus-image.
pub(super) struct NydusImage(PathBuf);

impl NydusImage {
    pub(super) fn new(peers: &Peers) -> Result<Self> {
        Ok(Self(peers.nydus("nydus-image")?))
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.0);
        command.args([name, "--log-level", "warn"]);
        command
    }

    /// Builds a layer's blob of a tar. Its defaults are ours: RAFS v6, zstd at level 3, BLAKE3, chunks of 1 MiB.
    pub(super) fn create(&self, tar: &Path, blob: &Path) -> Command {
        let mut command = self.command("create");
        command.args(["--type", "tar-rafs", "--fs-version", "6", "--whiteout-spec", "none"]);
        command.args(["--compressor", "zstd", "--digester", "blake3", "--chunk-size", "0x100000"]);
        command.args(["--blob-inline-meta", "--features", "blob-toc", "--blob"]).arg(blob).arg(tar);
        command
    }

    /// Merges layers' bootstraps, each named by its blob's digest.
    pub(super) fn merge(&self, output: &Path, layers: &[PathBuf]) -> Command {
        let mut command = self.command("merge");
        command.arg("--bootstrap").arg(output).args(layers);
        command
    }

    /// Fails if it finds anything wrong with a bootstrap.
    pub(super) fn check(&self, bootstrap: &Path) -> Result<()> {
        let output = process::run(self.command("check").arg("--bootstrap").arg(bootstrap))?;
        ensure!(
            output.stdout.contains("RAFS filesystem metadata is valid"),
            "{}{}",
            output.stdout,
            output.stderr
        );
        Ok(())
    }
}

/// Takes the bootstrap out of a layer's blob: a file in `dir` named by the blob's digest, as mergers want it. Next to it,
/// `blobs/` leads from digests to blobs.
pub(super) fn extract_bootstrap(blob: &Path, dir: &Path) -> Result<PathBuf> {
    // All of it in memory: layers of a benchmark are at most some hundred MB.
    let bytes = fs::read(blob).with_context(|| format!("reading {}", blob.display()))?;
    let digest = Digest(Sha256::digest(&bytes).into());
    let read = |range: Range<u64>| Ok(bytes[range.start as usize..range.end as usize].to_vec());
    let own = own_bootstrap(bytes.len() as u64, read)??;
    let own = own.with_context(|| format!("{}: no bootstrap", blob.display()))?;
    let path = dir.join(digest.to_string());
    fs::write(&path, own.bytes).with_context(|| format!("writing {}", path.display()))?;
    let blobs = dir.join("blobs");
    fs::create_dir_all(&blobs)?;
    let link = blobs.join(digest.to_string());
    if !link.exists() {
        symlink(fs::canonicalize(blob)?, &link).with_context(|| format!("linking {}", link.display()))?;
    }
    Ok(path)
}
