//! Configuration of the snapshotter, with its defaults in one place.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use service::{Access, Mode, TcpAddress, UnixAddress};

/// Configuration of the snapshotter.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotterConfig {
    /// Directory of the snapshots, mount points and state. Has to be on a file system that overlayfs accepts as upper
    /// layer. Default `/var/lib/nydus-cluster`.
    pub root: PathBuf,
    /// Socket that containerd connects to (`address` of its `proxy_plugins` entry). Default
    /// `unix:///run/nydus-cluster/snapshotter.sock`.
    pub listen: UnixAddress,
    /// Permissions of that socket; whoever may write to it can mount. Default `0600`.
    pub listen_mode: Mode,
    /// Its group, by name or number. Default: that of the process.
    pub listen_group: Option<String>,
    /// Its own control socket, on which image sets are put and node images mounted. Default: beside `listen`, with `-control` in its name:
    /// `unix:///run/nydus-cluster/snapshotter-control.sock`.
    pub socket: Option<UnixAddress>,
    /// Permissions of that socket; whoever may write to it says what images are run. Default `0600`.
    pub socket_mode: Mode,
    /// Its group, by name or number. Default: that of the process.
    pub socket_group: Option<String>,
    /// Where `GET /metrics` is answered, over plain HTTP. Default: nowhere.
    pub metrics_listen: Option<TcpAddress>,
    /// Seconds a container's start may wait until its image is mounted and serves; its caller gets an error then, while
    /// other images go on. Default 60, below the two minutes of the kubelet.
    pub mount_timeout_seconds: u64,
    /// Images mounted at the same time after a start or after the daemon was restarted. Default 4.
    pub restore_concurrency: usize,
    /// containerd's own socket, asked which image a bootstrap belongs to where no label says it: CRI and BuildKit do, `ctr`
    /// with the transfer service and Docker do not. Default `unix:///run/containerd/containerd.sock`.
    pub containerd: UnixAddress,
    /// Run the nydus image that stands beside a plain one in an index, where CRI pulls the plain one. The layers of that are
    /// not on the node then, so another plain image that is built on the same lowest layers and has no nydus image beside
    /// it cannot be pulled as long as the first is there. Needs `containerd`. Default false.
    pub nydus_beside_plain: bool,
    /// Kubeconfig with which pull secrets of this node's pods are read; a kubelet's own is enough. Default: none.
    pub kubeconfig: Option<PathBuf>,
    /// What the node is called in Kubernetes. Default: the machine's name in small letters, as a kubelet has it.
    pub node_name: Option<String>,
    /// How registries are reached: of a section of its own in the configuration file, which all roles share.
    #[serde(skip)]
    pub registry: registry::client::ClientConfig,
    /// Further options of every overlay mount, as of containerd's overlayfs snapshotter. Default none.
    pub overlay_options: Vec<String>,
    /// The daemon that serves the images.
    pub daemon: DaemonConfig,
}

impl Default for SnapshotterConfig {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/nydus-cluster"),
            listen: UnixAddress::fixed("/run/nydus-cluster/snapshotter.sock"),
            listen_mode: Mode::OWNER,
            listen_group: None,
            socket: None,
            socket_mode: Mode::OWNER,
            socket_group: None,
            metrics_listen: None,
            mount_timeout_seconds: 60,
            restore_concurrency: 4,
            containerd: UnixAddress::fixed("/run/containerd/containerd.sock"),
            nydus_beside_plain: false,
            kubeconfig: None,
            node_name: None,
            registry: registry::client::ClientConfig::default(),
            overlay_options: Vec::new(),
            daemon: DaemonConfig::default(),
        }
    }
}

impl SnapshotterConfig {
    /// Its own control socket.
    pub fn control_socket(&self) -> PathBuf {
        if let Some(socket) = &self.socket {
            return socket.path().to_owned();
        }
        let listen = self.listen.path();
        let name = listen.file_stem().unwrap_or_default().to_string_lossy();
        listen.with_file_name(format!("{name}-control.sock"))
    }

    /// Who may connect to the control socket.
    pub(crate) fn control_access(&self) -> Access {
        Access { mode: self.socket_mode, group: self.socket_group.clone() }
    }

    /// Who may connect.
    pub(crate) fn access(&self) -> Access {
        Access { mode: self.listen_mode, group: self.listen_group.clone() }
    }

    /// How long a caller waits for an image to be mounted.
    pub fn mount_timeout(&self) -> Duration {
        Duration::from_secs(self.mount_timeout_seconds)
    }
}

/// How the snapshotter reaches and starts the daemon.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DaemonConfig {
    /// The daemon's control socket. Default `unix:///run/nydus-cluster/daemon.sock`.
    pub socket: UnixAddress,
    /// Program to start when nothing answers on the socket. Default: the program that runs.
    pub command: Option<PathBuf>,
    /// Its arguments. Default `["daemon"]`.
    pub args: Vec<String>,
    /// File that its output is appended to. Default: the snapshotter's own output, right for a journal; a terminal or a
    /// pipe may go away before the daemon does.
    pub log: Option<PathBuf>,
    /// Whether to start the daemon at all; if not, somebody else (a systemd unit) has to. Default true.
    pub spawn: bool,
    /// Seconds that a new daemon has until it answers on its socket. Default 10.
    pub ready_timeout_seconds: u64,
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self {
            socket: UnixAddress::fixed("/run/nydus-cluster/daemon.sock"),
            command: None,
            args: vec!["daemon".to_owned()],
            log: None,
            spawn: true,
            ready_timeout_seconds: 10,
        }
    }
}

impl DaemonConfig {
    /// How long a new daemon has until it answers.
    pub fn ready_timeout(&self) -> Duration {
        Duration::from_secs(self.ready_timeout_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_socket_is_beside_the_other_one_unless_it_is_named() {
        let config = SnapshotterConfig::default();
        assert_eq!(config.control_socket(), PathBuf::from("/run/nydus-cluster/snapshotter-control.sock"));
        let config = SnapshotterConfig { listen: UnixAddress::fixed("/a/b.sock"), ..config };
        assert_eq!(config.control_socket(), PathBuf::from("/a/b-control.sock"));
        let config = SnapshotterConfig { socket: Some(UnixAddress::fixed("/c")), ..config };
        assert_eq!(config.control_socket(), PathBuf::from("/c"));
    }
}
