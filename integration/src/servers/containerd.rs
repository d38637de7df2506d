//! A real containerd with CRI, runc and, if asked, a proxy snapshotter.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{START_DEADLINE, accepts_unix};
use crate::cri::Cri;
use crate::peers::{self, ContainerdVersion, Peers};
use crate::process::Server;

/// A snapshotter that runs outside containerd.
#[derive(Debug, Clone)]
pub struct ProxySnapshotter {
    /// Its name in containerd.
    pub name: String,
    /// The Unix socket it listens on.
    pub socket: PathBuf,
}

/// The snapshotter that CRI uses.
#[derive(Debug, Clone)]
pub enum CriSnapshotter {
    /// containerd's own overlayfs, which unpacks one layer after the other.
    Overlayfs,
    /// The same, with layers unpacked at the same time: containerd 2.2 and later.
    ParallelOverlayfs,
    /// containerd's own of EROFS layers, which it takes as they are and makes of others, at the same time: containerd 2.4.
    Erofs,
    /// One that runs outside.
    Proxy(ProxySnapshotter),
}

impl CriSnapshotter {
    fn name(&self) -> &str {
        match self {
            Self::Overlayfs | Self::ParallelOverlayfs => "overlayfs",
            Self::Erofs => "erofs",
            Self::Proxy(proxy) => &proxy.name,
        }
    }
}

/// How containerd is to run.
#[derive(Debug, Clone)]
pub struct ContainerdOptions {
    /// Which one.
    pub version: ContainerdVersion,
    /// The image of pod sandboxes.
    pub sandbox_image: String,
    /// The snapshotter that CRI uses.
    pub snapshotter: CriSnapshotter,
    /// Whether the snapshotter is told which image a layer is of.
    pub annotations: bool,
    /// What the snapshotter is said to be capable of.
    pub capabilities: Vec<&'static str>,
}

impl ContainerdOptions {
    /// Its configuration, with everything under `dir` and its API at `socket`, for this host's runc.
    pub fn configuration(&self, dir: &Path, socket: &Path) -> Result<String> {
        configuration(self, dir, socket)
    }
}

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    server: Server,
    dir: PathBuf,
    socket: PathBuf,
    ctr: PathBuf,
    /// The variable PATH.
    path: OsString,
    snapshotter: String,
}

impl Containerd {
    /// Starts containerd with everything under `dir`, and waits until CRI answers.
    pub fn start(peers: &Peers, dir: &Path, options: &ContainerdOptions) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let socket = dir.join("containerd.sock");
        let config = dir.join("config.toml");
        fs::write(&config, options.configuration(dir, &socket)?)?;
        let program = peers.containerd(options.version, "containerd")?;
        let mut command = Command::new(&program);
        let mkfs = match options.snapshotter {
            CriSnapshotter::Erofs => Some(peers.erofs_utils("mkfs.erofs")?),
            _ => None,
        };
        let programs = [Some(program.as_path()), mkfs.as_deref()];
        let path = path_with(programs.into_iter().flatten().filter_map(Path::parent))?;
        command.arg("--config").arg(config).env("PATH", &path);
        let mut server = Server::spawn("containerd", command, dir.join("containerd.log"))?;
        server.wait_ready(START_DEADLINE, || {
            accepts_unix(&socket)
                && Cri::connect(&socket).and_then(|cri| cri.runtime_is_ready()).unwrap_or(false)
        })?;
        let snapshotter = options.snapshotter.name().to_owned();
        let ctr = peers.containerd(options.version, "ctr")?;
        Ok(Self { server, dir: dir.to_owned(), socket, ctr, path, snapshotter })
    }

    /// The process.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    /// The socket of containerd's own API and of CRI.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The folder of its settings of registries, one folder a host with a file `hosts.toml`.
    pub fn certs_dir(&self) -> PathBuf {
        self.dir.join("certs.d")
    }

    /// The directory given at the start.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name of the snapshotter that CRI uses.
    pub fn snapshotter(&self) -> &str {
        &self.snapshotter
    }

    /// A CRI client.
    pub fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.socket)
    }

    /// `ctr` in the namespace that CRI uses, to be completed.
    pub fn ctr(&self) -> Command {
        let mut command = Command::new(&self.ctr);
        command.env("PATH", &self.path).arg("--address").arg(&self.socket).args(["--namespace", "k8s.io"]);
        command
    }
}

/// containerd looks for its shim, and for what makes file systems, in PATH.
fn path_with<'a>(first: impl Iterator<Item = &'a Path>) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = first.map(PathBuf::from).chain(env::split_paths(&path));
    env::join_paths(folders.chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]))
        .context("composing PATH")
}

fn configuration(options: &ContainerdOptions, dir: &Path, socket: &Path) -> Result<String> {
    let runc = peers::system("runc")?;
    let (dir, socket, runc) = (dir.display(), socket.display(), runc.display());
    let snapshotter = options.snapshotter.name();
    let sandbox_image = &options.sandbox_image;
    let without_annotations = !options.annotations;
    // Layers are unpacked at the same time only where the snapshotter is said to be capable of it, as containerd's own are.
    let unpacks = match options.snapshotter {
        CriSnapshotter::ParallelOverlayfs | CriSnapshotter::Erofs => 4,
        _ if options.capabilities.contains(&"rebase") => 4,
        _ => 1,
    };
    // Others complain of it on hosts without its programs.
    let (erofs, features, differ) = match options.snapshotter {
        CriSnapshotter::Erofs => ("", "(+erofs)", "\n    differ = \"erofs\""),
        _ => ("\n  \"io.containerd.snapshotter.v1.erofs\", \"io.containerd.differ.v1.erofs\",", "", ""),
    };
    let (format, grpc, ttrpc) = match options.version {
        ContainerdVersion::V2_4 => {
            (4, "plugins.\"io.containerd.server.v1.grpc\"", "plugins.\"io.containerd.server.v1.ttrpc\"")
        }
        _ => (3, "grpc", "ttrpc"),
    };
    let mut text = match options.version {
        ContainerdVersion::V1_7 => format!(
            r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
# Not needed here, and some complain on hosts that lack their kernel parts.
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.internal.v1.tracing",
  "io.containerd.nri.v1.nri",
]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox_image}"
  # A nested machine may lack CAP_SYS_RESOURCE, and with it the right to lower oom_score_adj.
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{dir}/cni/bin"
    conf_dir = "{dir}/cni/conf"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{dir}/certs.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    # A lazy snapshotter learns from the annotations which image a snapshot belongs to.
    disable_snapshot_annotations = {without_annotations}
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{runc}"
"#
        ),
        ContainerdVersion::V2_2 | ContainerdVersion::V2_4 => format!(
            r#"version = {format}
root = "{dir}/root"
state = "{dir}/state"
# Not needed here, and some complain on hosts that lack their kernel parts.
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.blockfile",{erofs}
  "io.containerd.internal.v1.tracing", "io.containerd.nri.v1.nri",
]
[{grpc}]
  address = "{socket}"
[{ttrpc}]
  address = "{socket}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{snapshotter}"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{sandbox_image}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{dir}/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{dir}/cni/bin"]
    conf_dir = "{dir}/cni/conf"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = "{runc}"
[plugins."io.containerd.transfer.v1.local"]
  config_path = "{dir}/certs.d"
  max_concurrent_unpacks = {unpacks}
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux{features}/amd64"
    snapshotter = "{snapshotter}"{differ}
"#
        ),
    };
    if let CriSnapshotter::Proxy(proxy) = &options.snapshotter {
        text += &format!(
            "[proxy_plugins.{}]\n  type = \"snapshot\"\n  address = \"{}\"\n  capabilities = {:?}\n",
            proxy.name,
            proxy.socket.display(),
            options.capabilities,
        );
        if options.version != ContainerdVersion::V1_7 && options.annotations {
            text += &format!(
                "  [proxy_plugins.{}.exports]\n    enable_remote_snapshot_annotations = \"true\"\n",
                proxy.name
            );
        }
    }
    Ok(text)
}
