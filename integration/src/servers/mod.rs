//! Guards that start real servers, each under a directory and with sockets of its own.
//!
//! Nothing here touches what the host itself runs: every socket, root and state directory lies under the directory
//! that the caller gives.

mod api_server;
mod buildkit;
mod containerd;
mod docker_registry;
mod ours;
mod upstream;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

pub use api_server::{ApiServer, NODE};
pub use buildkit::{Buildctl, Buildkitd};
pub use containerd::{Containerd, ContainerdOptions, CriSnapshotter, ProxySnapshotter};
pub use docker_registry::{DockerRegistry, DockerRegistryOptions};
pub use ours::{EmbeddedRegistry, Exporter, ExporterOptions, ImageMount, SNAPSHOTTER_NAME, Snapshotter};
pub use upstream::{Nydusd, UpstreamMode, UpstreamSnapshotter, is_mountpoint};

/// How long any of the servers may take to be ready on a loaded machine.
pub const START_DEADLINE: Duration = Duration::from_secs(60);

/// An address on the loopback interface that nothing listens on at the moment. It may be somebody else's a moment later, so it is
/// for applications in containers alone, which do not say where they listen. Servers are given port 0.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Whether something accepts connections on the Unix socket at `path`.
pub fn accepts_unix(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}
