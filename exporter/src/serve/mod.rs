//! Serving BuildKit clients.
//!
//! - `listen`: the socket that clients connect to.
//! - `health`: whether the exporter takes builds.
//! - `connection`: one client's connection, and which of its streams are ours to look into.

mod connection;
mod health;
mod listen;

use std::sync::Arc;
use std::time::Duration;

use image::destination::SpoolFolder;
use service::metrics::{MetricsError, MetricsListener};
use service::{BindError, manager, memory};
use tokio_util::sync::CancellationToken;

use crate::config::ExporterConfig;
use crate::exporter::{Exporter, SettingsError};

/// How long registries get at the end to forget what builds had begun to push that were cancelled.
const GIVING_UP: Duration = Duration::from_secs(5);

/// Why the exporter does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be listened on.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// The settings are wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Metrics cannot be served.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The thread that removes what killed processes left is gone.
    #[error("removing what killed processes left ended unexpectedly: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Serves BuildKit clients until `shutdown`; builds under way then get a short time to end.
///
/// buildkitd need not run yet: it is connected to for each client, and its absence is the client's error.
pub async fn serve(config: ExporterConfig, shutdown: CancellationToken) -> Result<(), ServeError> {
    // A conversion's threads come and go. With heaps of their own, each of these would keep what the largest layer took.
    memory::keep_large_buffers_mapped();
    memory::share_heaps();
    let (upstream, access) = (config.upstream.clone(), config.access());
    let (metrics_listen, drain) = (config.metrics_listen, config.drain_seconds);
    let spool_dir = config.registry.upload.spool_dir.clone();
    let exporter = Arc::new(Exporter::new(config)?);
    // Before there are builds, for which their room is counted as free.
    tokio::task::spawn_blocking(move || SpoolFolder::remove_abandoned(&spool_dir)).await?;
    let listener = listen::Listener::bind(exporter.listen(), &access)?;
    // Scraped as long as builds are under way.
    let ended = CancellationToken::new();
    let _ends_scrapes = ended.clone().drop_guard();
    if let Some(address) = metrics_listen {
        let scrapes = MetricsListener::bind(address).await?;
        tracing::info!(address = %scrapes.address(), "metrics are served");
        tokio::spawn(scrapes.serve(Arc::new(exporter.metrics.registry(exporter.space())), ended));
    }
    tracing::info!(listen = %exporter.listen(), %upstream, "exporter ready");
    manager::ready();
    let begins = shutdown.clone();
    let told = tokio::spawn(async move {
        begins.cancelled().await;
        manager::stopping(&format!("waiting up to {drain} s for builds under way"));
    });
    listener.serve(Arc::clone(&exporter), shutdown).await;
    // Without builds that ends at once, and the process would be gone before its manager is told why.
    let _ = told.await;
    exporter.converter.settled().await;
    if tokio::time::timeout(GIVING_UP, exporter.client.uploads_ended()).await.is_err() {
        tracing::warn!("what was cancelled is left to its registries, which did not answer in time");
    }
    Ok(())
}
