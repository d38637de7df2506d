//! Servers that the benchmarks share.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use integration::oci_layout;
use integration::peers::Peers;
use integration::process;
use integration::servers::{Buildctl, Buildkitd, EmbeddedRegistry, Exporter};
use tempfile::TempDir;

/// More than the page cache of what is read in a run.
const TOUCHED_BYTES: usize = 2 << 30;

/// Fields are dropped in this order: users before what they use.
pub(crate) struct Lab {
    /// Reads layers from buildkitd's content store.
    pub(crate) exporter: Exporter,
    /// Takes layers over the session, as it has to where buildkitd runs elsewhere.
    pub(crate) remote_exporter: Exporter,
    buildkitd: Buildkitd,
    pub(crate) registry: EmbeddedRegistry,
    /// The sandbox image.
    pub(crate) pause: String,
    pub(crate) peers: Peers,
    dir: TempDir,
}

impl Lab {
    pub(crate) fn new(peers: &Peers) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("nydus-cluster-bench-").tempdir()?;
        let registry = EmbeddedRegistry::start(&dir.path().join("registry"))?;
        let buildkitd = Buildkitd::start(peers, &dir.path().join("buildkit"))?;
        let address = buildkitd.address();
        let exporter =
            Exporter::start_with_store(&dir.path().join("exporter"), &address, buildkitd.content_store())?;
        let remote_exporter = Exporter::start(&dir.path().join("remote-exporter"), &address)?;
        let command = ["/bin/sleep", "infinity"];
        let rootfs = peers.pause_rootfs()?;
        let pause =
            oci_layout::push(registry.address(), "pause", &rootfs, &command, &dir.path().join("pause"))?;
        Ok(Self { exporter, remote_exporter, buildkitd, registry, pause, peers: peers.clone(), dir })
    }

    /// buildctl through the exporter on the machine of buildkitd.
    pub(crate) fn buildctl(&self) -> Result<Buildctl> {
        Buildctl::new(&self.peers, self.exporter.address())
    }

    /// buildctl through the exporter that knows buildkitd by its socket alone.
    pub(crate) fn remote_buildctl(&self) -> Result<Buildctl> {
        Buildctl::new(&self.peers, self.remote_exporter.address())
    }

    /// buildctl straight to buildkitd.
    pub(crate) fn plain_buildctl(&self) -> Result<Buildctl> {
        Buildctl::new(&self.peers, self.buildkitd.address())
    }

    /// The directory of buildkitd's content store.
    pub(crate) fn content_store(&self) -> &Path {
        self.buildkitd.content_store()
    }

    /// Where buildkitd listens.
    pub(crate) fn buildkitd_address(&self) -> String {
        self.buildkitd.address()
    }

    /// Processor time that buildkitd has taken so far, in seconds.
    pub(crate) fn buildkitd_processor_seconds(&self) -> Result<f64> {
        Ok(process::processor_seconds(self.buildkitd.pid()?)?)
    }

    /// A directory for one use.
    pub(crate) fn subdir(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(path)
    }
}

/// Takes memory and gives it back, so that no side is the one that takes it from the host of a virtual machine for the
/// first time.
pub(crate) fn touch_memory() {
    let mut memory = vec![0_u8; TOUCHED_BYTES];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    std::hint::black_box(&memory);
}

/// Writes what was written, and makes the kernel forget what it read, so that no side finds the other's files warm.
pub(crate) fn forget_page_cache() -> Result<()> {
    nix::unistd::sync();
    let control = Path::new("/proc/sys/vm/drop_caches");
    fs::write(control, "3").with_context(|| format!("writing {}", control.display()))
}
