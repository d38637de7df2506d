//! Where the real peers are: what `scripts/deps` fetched and built, Debian's programs, and our own binary.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

/// The versions of containerd that are run here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ContainerdVersion {
    /// 1.7 of Debian 13, with the configuration's format 2.
    #[default]
    V1_7,
    /// 2.2, with the configuration's format 3.
    V2_2,
    /// 2.4, with the configuration's format 4.
    V2_4,
}

/// Decides on which containerd the tests are that need one of series 2: `2.4` or `2.2`.
const CONTAINERD: &str = "NYDUS_CLUSTER_CONTAINERD";

impl ContainerdVersion {
    /// The one of series 2 that is chosen: `$NYDUS_CLUSTER_CONTAINERD` says `2.4` or `2.2`.
    pub fn of_series_2() -> Result<Self> {
        match env::var(CONTAINERD).as_deref() {
            Err(_) | Ok("2.4") => Ok(Self::V2_4),
            Ok("2.2") => Ok(Self::V2_2),
            Ok(other) => bail!("{CONTAINERD}={other}: expected 2.2 or 2.4"),
        }
    }
}

impl fmt::Display for ContainerdVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1_7 => "1.7",
            Self::V2_2 => "2.2",
            Self::V2_4 => "2.4",
        })
    }
}

/// The versions of BuildKit that are run here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BuildkitVersion {
    /// 0.34.
    #[default]
    Newest,
    /// 0.12, the oldest that the exporter supports: it takes one output a build, and does not rewrite timestamps.
    Oldest,
}

/// Decides on which BuildKit a run's tests are.
const BUILDKIT: &str = "NYDUS_CLUSTER_BUILDKIT";

/// Decides which Debian the machines run: `12`, or `13` with a newer systemd.
const MACHINES: &str = "NYDUS_CLUSTER_MACHINES";

/// The cache that `scripts/deps` fills.
#[derive(Debug, Clone)]
pub struct Peers {
    cache: PathBuf,
    buildkit: BuildkitVersion,
}

impl Peers {
    /// The cache of this user: `$NYDUS_CLUSTER_CACHE`, or `nydus-cluster` in the user's cache folder.
    pub fn of_user() -> Result<Self> {
        let folder = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = folder("NYDUS_CLUSTER_CACHE")
            .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("nydus-cluster")))
            .or_else(|| folder("HOME").map(|home| home.join(".cache/nydus-cluster")))
            .ok_or_else(|| anyhow!("no cache folder: neither NYDUS_CLUSTER_CACHE nor HOME is set"))?;
        let buildkit = match env::var(BUILDKIT).as_deref() {
            Err(_) | Ok("newest") => BuildkitVersion::Newest,
            Ok("oldest") => BuildkitVersion::Oldest,
            Ok(other) => bail!("{BUILDKIT}={other}: expected oldest or newest"),
        };
        Ok(Self { cache, buildkit })
    }

    /// The cache folder itself.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Fails with the name of what the machine lacks, of that which every comparison of images with peers needs.
    pub fn require_common(&self) -> Result<()> {
        if !nix::unistd::Uid::effective().is_root() {
            bail!("root");
        }
        if !Path::new("/dev/fuse").exists() {
            bail!("/dev/fuse");
        }
        nydus_cluster()?;
        for program in ["nydusd", "nydus-image"] {
            self.nydus(program)?;
        }
        for program in ["fsck.erofs", "tar"] {
            system(program)?;
        }
        for layer in ["base", "numpy"] {
            self.demo_layer(layer).context("a real root file system")?;
        }
        Ok(())
    }

    fn built(&self, peer: &str, program: &str) -> Result<PathBuf> {
        existing(self.cache.join("peers").join(peer).join("bin").join(program))
    }

    /// A program of BuildKit: `buildkitd` or `buildctl`.
    pub fn buildkit(&self, program: &str) -> Result<PathBuf> {
        let peer = match self.buildkit {
            BuildkitVersion::Newest => "buildkit",
            BuildkitVersion::Oldest => "buildkit-oldest",
        };
        self.built(peer, program)
    }

    /// Which BuildKit that is: `$NYDUS_CLUSTER_BUILDKIT` says `newest` or `oldest`.
    pub fn buildkit_version(&self) -> BuildkitVersion {
        self.buildkit
    }

    /// A program of containerd: `containerd`, `ctr` or its shim.
    pub fn containerd(&self, version: ContainerdVersion, program: &str) -> Result<PathBuf> {
        self.built(&format!("containerd-{version}"), program)
    }

    /// A program of upstream's nydus-snapshotter.
    pub fn nydus_snapshotter(&self, program: &str) -> Result<PathBuf> {
        self.built("nydus-snapshotter", program)
    }

    /// A program of erofs-utils that reads tars: `mkfs.erofs`.
    pub fn erofs_utils(&self, program: &str) -> Result<PathBuf> {
        self.built("erofs-utils", program)
    }

    /// containerd's own test suite for snapshotters.
    pub fn snapshots_suite(&self) -> Result<PathBuf> {
        self.built("containerd-2.4", "snapshots-suite")
    }

    /// The CRI's own suites.
    pub fn critest(&self) -> Result<PathBuf> {
        self.built("cri-tools", "critest")
    }

    /// A program of upstream's nydus: `nydusd` or `nydus-image`.
    pub fn nydus(&self, program: &str) -> Result<PathBuf> {
        self.built("nydus", program)
    }

    /// The distribution specification's conformance suite for registries.
    pub fn oci_conformance(&self) -> Result<PathBuf> {
        self.built("oci-conformance", "oci-conformance")
    }

    /// The root file system of pod sandboxes: a static `sleep`.
    pub fn pause_rootfs(&self) -> Result<PathBuf> {
        existing(self.cache.join("rootfs/pause/pause.tar"))
    }

    /// A layer of the demonstration's root file system: `base` or `numpy`.
    pub fn demo_layer(&self, name: &str) -> Result<PathBuf> {
        existing(self.cache.join("rootfs/demo").join(format!("{name}.tar")))
    }

    /// The program helm.
    pub fn helm(&self) -> Result<PathBuf> {
        self.built("helm", "helm")
    }

    /// The program crane.
    pub fn crane(&self) -> Result<PathBuf> {
        self.built("crane", "crane")
    }

    /// A program of Kubernetes, etcd or CoreDNS.
    pub fn kubernetes(&self, program: &str) -> Result<PathBuf> {
        self.built("kubernetes", program)
    }

    /// The root directory of a bare node, of the Debian that `$NYDUS_CLUSTER_MACHINES` names: `12` or `13`.
    pub fn node_root(&self) -> Result<PathBuf> {
        let node = match env::var(MACHINES).as_deref() {
            Err(_) | Ok("12") => "node",
            Ok("13") => "newer-node",
            Ok(other) => bail!("{MACHINES}={other}: expected 12 or 13"),
        };
        existing(self.cache.join("rootfs").join(node).join("root"))
    }

    /// The large root file system of the benchmarks.
    pub fn big_rootfs(&self) -> Result<PathBuf> {
        existing(self.cache.join("rootfs/big/big.tar"))
    }
}

fn existing(path: PathBuf) -> Result<PathBuf> {
    if !path.exists() {
        bail!("{} (run scripts/deps)", path.display());
    }
    Ok(path)
}

/// A program of the system, searched in PATH and where Debian puts servers.
pub fn system(program: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| anyhow!("{program} (run scripts/deps)"))
}

/// The `nydus-cluster` binary: `$NYDUS_CLUSTER_BIN`, or the one built next to this program.
pub fn nydus_cluster() -> Result<PathBuf> {
    if let Some(path) = env::var_os("NYDUS_CLUSTER_BIN") {
        return existing(path.into());
    }
    next_to_this("nydus-cluster")?
        .ok_or_else(|| anyhow!("the nydus-cluster binary (run cargo build -p cli in the same profile)"))
}

/// A program of this package.
pub fn of_integration(program: &str) -> Result<PathBuf> {
    next_to_this(program)?
        .ok_or_else(|| anyhow!("the program {program} (run cargo build -p integration --bins)"))
}

/// A program in this one's folder, or in the folder above it, as it is for tests.
fn next_to_this(program: &str) -> Result<Option<PathBuf>> {
    let this = env::current_exe().context("finding this program")?;
    let mut folders = this.ancestors().skip(1).take(2).map(|folder| folder.join(program));
    Ok(folders.find(|candidate| candidate.is_file()))
}

/// Files of the demonstration that are part of the source: the Dockerfile and the application.
pub fn demo_sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/demo")
}
