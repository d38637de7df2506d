//! The containerd side: the snapshots service, its state, overlay mounts and the life of the daemon.
//!
//! containerd calls the service over a Unix socket (a `proxy_plugins` entry of its configuration). A call's way:
//!
//! ```text
//! service    gRPC messages in and out
//! snapshots  what containerd means by Prepare, View, Commit …, for plain and nydus layers
//!   state    which snapshots there are          (redb)
//!   overlay  their directories and mounts
//!   nydus    what layers are; mounted images  → daemon  finding, starting and watching it
//! control    image sets, which are run as RAFS whatever they are called, and images of the node itself; a socket of its own
//! filter     containerd's filter language
//! broker     how registries are read, for the daemon  → kubernetes  pull secrets of the node's pods
//! containerd questions to containerd itself
//! forget     what containerd has of us is taken from it, when it goes on without us
//! ```
//!
//! Plain images behave as with containerd's overlayfs snapshotter. Of a nydus image only the bootstrap is unpacked; the
//! daemon serves it, once for all its containers, and each container's overlay lies on that.

mod broker;
mod config;
mod containerd;
pub mod control;
mod daemon;
mod error;
mod filter;
mod forget;
mod kubernetes;
mod metrics;
mod nydus;
mod overlay;
mod service;
mod snapshots;
mod state;
mod sys;
mod tasks;

use std::sync::Arc;
use std::time::Duration;

use ::service::metrics::MetricsListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use config::{DaemonConfig, SnapshotterConfig};
pub use containerd::LookupError;
pub use error::{Error, MountFailure};
pub use filter::FilterError;
pub use forget::forget;
pub use state::Kind;

use broker::Broker;
use daemon::{Daemon, describe};
use kubernetes::Kubernetes;
use metrics::Calls;
use snapshots::Snapshotter;

/// How long there are no calls until memory is given back.
const IDLE_PAUSE: Duration = Duration::from_secs(5);

/// Serves snapshots until `shutdown`. The daemon, its mounts and all containers go on after that.
///
/// The socket answers at once; the daemon is found or started, leftovers are cleaned up and images in use are mounted
/// again meanwhile.
///
/// # Errors
///
/// If the root cannot be used, another process uses it, or the socket cannot be served.
pub async fn serve(config: SnapshotterConfig, shutdown: CancellationToken) -> Result<(), Error> {
    // One for each mount.
    ::service::limits::raise_open_files();
    ::service::memory::keep_large_buffers_mapped();
    ::service::memory::share_heaps();
    let kubernetes = |client| {
        let kubeconfig = config.kubeconfig.clone()?;
        Some(Kubernetes::new(kubeconfig, config.node_name.clone().unwrap_or_else(sys::host_name), client))
    };
    let broker = Broker::new(config.registry.clone(), kubernetes);
    let broker =
        broker.map_err(|error| Error::Internal(format!("registry settings: {}", describe(&error))))?;
    let broker = Arc::new(broker);
    let daemon = Arc::new(Daemon::new(config.daemon.clone(), Arc::clone(&broker)));
    let snapshotter = {
        let (config, daemon) = (config.clone(), Arc::clone(&daemon));
        Arc::new(tasks::blocking(move || Snapshotter::open(&config, daemon, broker)).await?)
    };
    let control = ::service::control::Server::bind(&config.control_socket(), &config.control_access())?;
    // Ends the tasks below also if serving fails.
    let running = shutdown.child_token();
    let _stop = running.clone().drop_guard();
    tokio::spawn({
        let (ours, running) = (snapshotter.mount_directory().to_owned(), running.clone());
        async move { daemon.supervise(&ours, &running).await }
    });
    tokio::spawn({
        let (snapshotter, running) = (Arc::clone(&snapshotter), running.clone());
        async move { running.run_until_cancelled(keep_in_order(&snapshotter)).await }
    });
    let controlled = control::serve(control, Arc::clone(&snapshotter), &running);
    let calls = Calls::default();
    tokio::spawn({
        let (calls, running) = (calls.clone(), running.clone());
        async move { running.run_until_cancelled(give_back_memory(&calls)).await }
    });
    if let Some(address) = config.metrics_listen {
        let scrapes = MetricsListener::bind(address).await?;
        info!(address = %scrapes.address(), "metrics are served");
        let registry = Arc::new(metrics::registry(&calls, &snapshotter));
        tokio::spawn(scrapes.serve(registry, running.clone()));
    }
    let served = async {
        let snapshotter = Arc::clone(&snapshotter);
        let served = service::serve(snapshotter, &config.listen, &config.access(), calls, &shutdown).await;
        // The control socket ends with the other one.
        running.cancel();
        served
    };
    tokio::join!(served, controlled).0
}

/// Gives back what calls took, once there are none for a while.
async fn give_back_memory(calls: &Calls) {
    let (mut seen, mut given_back_after) = (0, None);
    loop {
        tokio::time::sleep(IDLE_PAUSE).await;
        let before = std::mem::replace(&mut seen, calls.count());
        if before == seen && given_back_after != Some(seen) {
            ::service::memory::give_back();
            given_back_after = Some(seen);
        }
    }
}

/// Cleans up what a crash left, keeps the images in use mounted, the node's own and those of containers, and those that are not in use,
/// no longer than there is room.
async fn keep_in_order(snapshotter: &Arc<Snapshotter>) {
    if let Err(error) = snapshotter.cleanup().await {
        warn!(error = describe(&error), "cannot clean up");
    }
    tokio::join!(snapshotter.keep_node_images(), snapshotter.keep_restored(), snapshotter.keep_room());
}
