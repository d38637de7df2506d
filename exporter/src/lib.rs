//! The BuildKit side: proxies Control, captures a build's result, converts and pushes it.
//!
//! BuildKit's client and daemon are not patched. [`serve`] listens on a socket in buildkitd's place and passes on what
//! comes, byte for byte. Where a build has an output `type=nydus-cluster`, buildkitd is told to export an OCI image
//! over the client's session, and the session's content store is answered here:
//!
//! ```text
//! buildctl ──proxy──────────────> buildkitd
//!     control::solve     ours becomes oci; response waits for the push
//!     control::status    our progress among buildkitd's
//!     control::session   the tunnel back to the client, opened here
//!                            │ content (blobs of the result)
//!                            v
//!                        convert: layer ──rafs──> blob ──> registry
//!                        image:   layers ──merge──> bootstrap, config, manifest ──> registry
//! ```
//!
//! Where the exporter can read buildkitd's content store, layers come from its files instead.
//!
//! [`conversion`] does the same with an image that is somewhere already.

#![forbid(unsafe_code)]

mod attrs;
mod config;
mod content;
mod control;
pub mod conversion;
pub mod convert;
mod error;
mod exporter;
mod grpc;
pub mod image;
pub mod progress;
mod proxy;
mod session;
mod target;
mod wire;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

pub use config::{ExporterConfig, ParseSocketAddressError, SocketAddress};
pub use exporter::threads;
use tokio_util::sync::CancellationToken;

/// Why the exporter does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be listened on.
    #[error("cannot listen at unix://{}: {error}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The settings for registries are wrong.
    #[error("registry settings: {0}")]
    Registry(#[from] registry::client::Error),
}

/// Serves BuildKit clients until `shutdown`; builds under way then get a short time to end.
///
/// buildkitd need not run yet: it is connected to for each client, and its absence is the client's error.
pub async fn serve(config: ExporterConfig, shutdown: CancellationToken) -> Result<(), ServeError> {
    let path = config.listen.path().to_owned();
    let upstream = config.upstream.clone();
    let exporter = Arc::new(exporter::Exporter::new(config)?);
    let listener = proxy::Listener::bind(&path).await.map_err(|error| ServeError::Listen { path, error })?;
    tracing::info!(listen = %exporter.listen(), %upstream, "exporter ready");
    listener.serve(exporter, shutdown).await;
    Ok(())
}
