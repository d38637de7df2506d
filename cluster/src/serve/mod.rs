//! The registry of saved images on a node: it answers for their names what the images' own registries would, but layers.
//!
//! ```text
//! saved images ─> kept: documents in a directory ─> registry on a loopback address ─> containerd
//! ```
//!
//! - `kept`: the images' own indexes, manifests and configs on this node's disk, in the storage layout of registries. They
//!   are fetched once; from then on the place that they were saved at is not needed.
//! - `names`: what the registries that images are of are called in names of repositories here.
//!
//! containerd does not ask for layers that the snapshotter has already, and it has those of the table ([`crate::saved::Table`]). Those of images
//! that are nydus images alone it fetches by their names: they are passed on from where they were saved.

mod kept;
mod names;

use std::net::SocketAddr;
use std::time::Duration;

use registry::Repository;
use registry::client::Client;
use registry::server::{BlobsElsewhere, Server, ServerConfig, ServerError, StandIn, serve_stand_in};
use tokio_util::sync::CancellationToken;

pub use kept::{KeepError, Kept, hosts};

/// What is said where a layer is asked for.
const ABSENT: &str = "layers of saved images are not on the node as they were: containers read them from the blobs \
                      that they were saved as. To push or export an image, take it from its own registry";

/// How long a blob may take to begin to come from the repository that images were saved to. A read on the node has 30 s: a third of it, so that
/// time is left to ask the image's own registry.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves what is kept, until `shutdown` is cancelled. `saved` is the repository that the images were saved to, if they are in one, with the
/// client to read it with: blobs of nydus images that were saved as they are come from there.
///
/// # Errors
///
/// When the address cannot be listened on.
pub async fn serve(
    kept: &Kept,
    saved: Option<(Client, Repository)>,
    listen: SocketAddr,
    shutdown: CancellationToken,
) -> Result<Server, ServerError> {
    let config = ServerConfig { listen, ..ServerConfig::new(kept.dir()) };
    let elsewhere = saved.map(|(client, repository)| BlobsElsewhere {
        client,
        repository,
        blobs: kept.blobs(),
        patience: PATIENCE,
    });
    let stand_in = StandIn { hosts: kept.hosts().clone(), absent: Some(ABSENT.to_owned()), elsewhere };
    serve_stand_in(config, kept.layout(), stand_in, shutdown).await
}
