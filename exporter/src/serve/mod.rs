//! Serving BuildKit clients, and what all their connections share.
//!
//! - `listen`: the socket that clients connect to.
//! - `connection`: one client's connection, and which of its streams are ours to look into.

mod connection;
mod listen;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rafs::build::BuildOptions;
use registry::client::{Client, Error};
use service::{BindError, UnixAddress};
use tokio_util::sync::CancellationToken;

use crate::build::Builds;
use crate::config::ExporterConfig;
use crate::follow::LocalStore;
use crate::session::Sessions;
use image::destination::SpoolSpace;
use image::layer::Converter;

/// The most threads that one conversion takes unless told otherwise: at about 250 MB/s each they outrun what buildkitd sends,
/// and every one costs some 5 MB of buffers.
const DEFAULT_THREADS_LIMIT: usize = 4;

/// The number of worker threads that a setting means: 0 is one a core, up to four.
pub fn threads(setting: usize) -> usize {
    match setting {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(DEFAULT_THREADS_LIMIT)),
        threads => threads,
    }
}

/// The exporter of one process.
#[derive(Debug)]
pub(crate) struct Exporter {
    config: ExporterConfig,
    /// Reaches registries as configured.
    pub(crate) client: Client,
    /// Builds under way.
    pub(crate) builds: Arc<Builds>,
    /// Sessions of clients that are open.
    pub(crate) sessions: Sessions,
    /// Converts layers.
    pub(crate) converter: Converter,
    /// Room for blobs of which it is not known yet whose they are.
    space: Arc<SpoolSpace>,
}

impl Exporter {
    /// An exporter with nothing to do.
    pub(crate) fn new(config: ExporterConfig) -> Result<Self, Error> {
        let client = Client::new(config.registry.clone())?;
        let options = BuildOptions { threads: threads(config.threads), ..BuildOptions::default() };
        let converter = Converter::new(options, config.conversions.max(1), config.layer_cache_bytes);
        let space = SpoolSpace::new(&config.registry.upload.spool_dir, config.ahead_bytes);
        Ok(Self { config, client, builds: Arc::default(), sessions: Sessions::default(), converter, space })
    }

    /// How long builds may go on after a shutdown was asked for, before they are cancelled.
    pub(crate) fn drain(&self) -> Duration {
        Duration::from_secs(self.config.drain_seconds)
    }

    /// How long a registry may be silent before anything is sent to it.
    pub(crate) fn registry_answer(&self) -> Duration {
        Duration::from_secs(self.config.registry_answer_seconds)
    }

    /// Whether our own credentials may stand in for those that a client lacks.
    pub(crate) fn own_credentials(&self) -> bool {
        self.config.own_credentials
    }

    /// buildkitd's socket.
    pub(crate) fn upstream(&self) -> &Path {
        self.config.upstream.path()
    }

    /// buildkitd's content store, if it can be read here.
    pub(crate) fn content_store(&self) -> Option<LocalStore> {
        self.config.content_store.as_deref().map(|dir| LocalStore::new(dir, Arc::clone(&self.space)))
    }

    /// Our socket.
    pub(crate) fn listen(&self) -> &UnixAddress {
        &self.config.listen
    }
}

/// Why the exporter does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be listened on.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// The settings for registries are wrong.
    #[error("registry settings: {0}")]
    Registry(#[from] registry::client::Error),
}

/// Serves BuildKit clients until `shutdown`; builds under way then get a short time to end.
///
/// buildkitd need not run yet: it is connected to for each client, and its absence is the client's error.
pub async fn serve(config: ExporterConfig, shutdown: CancellationToken) -> Result<(), ServeError> {
    let (upstream, access) = (config.upstream.clone(), config.access());
    let exporter = Arc::new(Exporter::new(config)?);
    let listener = listen::Listener::bind(exporter.listen(), &access)?;
    tracing::info!(listen = %exporter.listen(), %upstream, "exporter ready");
    listener.serve(exporter, shutdown).await;
    Ok(())
}
