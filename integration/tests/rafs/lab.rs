//! What the tests share: where things are, and what their trees must look like.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use integration::corpus::{self, Tree};
use integration::gnu_tar::extract;
use integration::nydus_image::NydusImage;
use integration::peers::{self, Peers};
use integration::process;
use integration::suite::Lazy;
use integration::tree::{self, ListOptions, Listing};
use tempfile::TempDir;

/// Everything that a listing can show.
const EXACT: ListOptions = ListOptions { nanoseconds: true };

/// Lists a mount of overlayfs with all that it shows.
pub(crate) fn list_overlay(root: &Path) -> Result<Listing> {
    tree::list_overlay(root, EXACT)
}

/// Lists a tree with all that it shows.
pub(crate) fn list(root: &Path) -> Result<Listing> {
    tree::list(root, EXACT)
}

/// Peers, a directory, and trees that several tests expect.
pub(crate) struct Lab {
    peers: Peers,
    dir: TempDir,
    missing: Option<String>,
    generated: Lazy<Listing>,
    generated_base: Lazy<Listing>,
    demo: Lazy<Listing>,
}

impl Lab {
    pub(crate) fn new() -> Result<Self> {
        let peers = Peers::of_user()?;
        Ok(Self {
            missing: peers.require_common().err().map(|error| format!("{error:#}")),
            peers,
            dir: tempfile::Builder::new().prefix("nydus-cluster-rafs-").tempdir()?,
            generated: Lazy::new(),
            generated_base: Lazy::new(),
            demo: Lazy::new(),
        })
    }

    /// What the machine lacks for these tests.
    pub(crate) fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.peers
    }

    pub(crate) fn nydus_image(&self) -> Result<NydusImage> {
        NydusImage::new(&self.peers)
    }

    /// A directory of a test's own, deleted at its end.
    pub(crate) fn scratch(&self) -> Result<TempDir> {
        Ok(TempDir::new_in(self.dir.path())?)
    }

    /// The generated layers as they must look, laid over one another.
    pub(crate) fn generated(&self) -> Result<&Listing> {
        self.generated.get(|| self.unpacked(&[corpus::base(), corpus::upper()]))
    }

    /// The lowest of the generated layers as it must look.
    pub(crate) fn generated_base(&self) -> Result<&Listing> {
        self.generated_base.get(|| self.unpacked(&[corpus::base()]))
    }

    /// Lists what layers must look like.
    pub(crate) fn unpacked(&self, layers: &[corpus::Layer]) -> Result<Listing> {
        let scratch = self.scratch()?;
        let root = scratch.path().join("tree");
        Tree::make(layers, &root)?;
        list(&root)
    }

    /// The layers of a real root file system: Debian, and Python with numpy on it.
    pub(crate) fn demo_layers(&self) -> Result<[PathBuf; 2]> {
        Ok([self.peers.demo_layer("base")?, self.peers.demo_layer("numpy")?])
    }

    /// The real root file system as it must look: as GNU tar extracts its layers.
    pub(crate) fn demo(&self) -> Result<&Listing> {
        self.demo.get(|| {
            let scratch = self.scratch()?;
            let root = scratch.path().join("tree");
            let [lower, upper] = self.demo_layers()?;
            extract(&lower, &root)?;
            let before = list(&root)?;
            extract(&upper, &root)?;
            let mut after = list(&root)?;
            // What tar adds to a directory that the upper layer has no entry for changes its time.
            after.keep_directory_times(&before, &names(&upper)?);
            Ok(after)
        })
    }
}

/// The paths of a tar as listings have them.
fn names(tar: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut command = Command::new(peers::system("tar")?);
    let output = process::run(command.args(["--list", "--quoting-style=literal", "--file"]).arg(tar))?;
    let path = |line: &str| Path::new(".").join(line.trim_start_matches("./").trim_end_matches('/'));
    Ok(output.stdout.lines().map(path).collect())
}

/// Extracts a tar to a directory of its own and lists that.
pub(crate) fn list_tar(tar: &Path, scratch: &Path) -> Result<Listing> {
    let target = scratch.join("extracted");
    extract(tar, &target)?;
    let listing = list(&target)?;
    fs::remove_dir_all(&target)?;
    Ok(listing)
}
