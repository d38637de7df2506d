//! Serving BuildKit clients, and what all their connections share.
//!
//! - `listen`: the socket that clients connect to.
//! - `health`: whether the exporter takes builds.
//! - `connection`: one client's connection, and which of its streams are ours to look into.

mod connection;
mod health;
mod listen;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cluster::ClusterConfig;
use image::options::{Options, OptionsError, Recipe, Used, Word};
use registry::client::Client;
use service::metrics::{MetricsError, MetricsListener};
use service::{BindError, UnixAddress, manager, memory};
use tokio_util::sync::CancellationToken;

use crate::build::Builds;
use crate::config::ExporterConfig;
use crate::follow::LocalStore;
use crate::metrics::Metrics;
use crate::session::Sessions;
use image::destination::SpoolSpace;
use image::layer::{Converter, LayerCache, ScratchSpace};

/// The most threads that one conversion takes unless told otherwise: at about 250 MB/s each they outrun what buildkitd sends,
/// and every one costs some 5 MB of buffers.
const DEFAULT_THREADS_LIMIT: usize = 4;

/// How long registries get at the end to forget what builds had begun to push that were cancelled.
const GIVING_UP: Duration = Duration::from_secs(5);

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
    /// What is taken for what an output's keys do not choose.
    defaults: Options,
    /// Converts layers.
    pub(crate) converter: Converter,
    /// What is counted.
    pub(crate) metrics: Metrics,
    /// Room for blobs of which it is not known yet whose they are.
    space: Arc<SpoolSpace>,
    /// Room for layers that are flattened.
    pub(crate) scratch_space: Arc<ScratchSpace>,
}

impl Exporter {
    /// An exporter with nothing to do.
    pub(crate) fn new(config: ExporterConfig) -> Result<Self, ServeError> {
        let defaults = defaults(&config.options)?;
        let client = Client::new(config.registry.clone())?;
        let mut cache = LayerCache::new(config.layer_cache_bytes);
        if !config.layer_cache_dir.as_os_str().is_empty() {
            cache = cache.on_disk(&config.layer_cache_dir, config.layer_cache_disk_bytes);
        }
        let converter = Converter::new(Recipe::default(), config.conversions, cache);
        let spool_dir = &config.registry.upload.spool_dir;
        let space = SpoolSpace::new(spool_dir, config.ahead_bytes);
        let scratch_space = ScratchSpace::new(spool_dir, config.flatten_bytes);
        Ok(Self {
            config,
            client,
            builds: Arc::default(),
            sessions: Sessions::default(),
            defaults,
            converter,
            metrics: Metrics::default(),
            space,
            scratch_space,
        })
    }

    /// What is taken for what an output's keys do not choose about its image.
    pub(crate) fn defaults(&self) -> &Options {
        &self.defaults
    }

    /// Worker threads of one conversion.
    pub(crate) fn threads(&self) -> usize {
        threads(self.config.threads)
    }

    /// How a result is looked through for container images.
    pub(crate) fn cluster(&self) -> &ClusterConfig {
        &self.config.cluster
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

    /// Whether layers are used again that a manifest at the image's name announces.
    pub(crate) fn reuses(&self) -> bool {
        self.config.reuse_from_registry
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

/// The options that a configuration makes the defaults.
fn defaults(configured: &BTreeMap<String, String>) -> Result<Options, ServeError> {
    let mut options = Options::default();
    for (key, value) in configured {
        if !options.set(Used::Build, key, value)? {
            let known = Word::all(Used::Build).map(|word| word.name).collect::<Vec<_>>().join(", ");
            return Err(ServeError::UnknownOption { key: key.clone(), known });
        }
    }
    options.check()?;
    Ok(options)
}

/// Why the exporter does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be listened on.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// The settings of what is chosen about images are wrong.
    #[error("[exporter.options]: {0}")]
    Options(#[from] OptionsError),
    /// There is no such choice.
    #[error(
        "[exporter.options]: unknown key {key:?}; known are the keys of an output about its image: {known}"
    )]
    UnknownOption {
        /// The key.
        key: String,
        /// Those that there are.
        known: String,
    },
    /// Metrics cannot be served.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The settings for registries are wrong.
    #[error("registry settings: {0}")]
    Registry(#[from] registry::client::Error),
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
    let exporter = Arc::new(Exporter::new(config)?);
    let listener = listen::Listener::bind(exporter.listen(), &access)?;
    // Scraped as long as builds are under way.
    let ended = CancellationToken::new();
    let _ends_scrapes = ended.clone().drop_guard();
    if let Some(address) = metrics_listen {
        let scrapes = MetricsListener::bind(address).await?;
        tracing::info!(address = %scrapes.address(), "metrics are served");
        tokio::spawn(scrapes.serve(Arc::new(exporter.metrics.registry(&exporter.space)), ended));
    }
    tracing::info!(listen = %exporter.listen(), %upstream, "exporter ready");
    manager::ready();
    let told = shutdown.clone();
    tokio::spawn(async move {
        told.cancelled().await;
        manager::stopping(&format!("waiting up to {drain} s for builds under way"));
    });
    listener.serve(Arc::clone(&exporter), shutdown).await;
    exporter.converter.settled().await;
    if tokio::time::timeout(GIVING_UP, exporter.client.uploads_ended()).await.is_err() {
        tracing::warn!("what was cancelled is left to its registries, which did not answer in time");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_defaults_are_checked_at_the_start() {
        let defaults = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
            defaults(&pairs.collect()).map_err(|error| error.to_string())
        };
        assert_eq!(defaults(&[("chunk-size", "64K")]).unwrap().chunk_size, 1 << 16);
        let error = defaults(&[("chunk-size", "5K")]).unwrap_err();
        assert!(error.starts_with("[exporter.options]: chunk-size=\"5K\": expected"), "{error}");
        let error = defaults(&[("chunksize", "64K")]).unwrap_err();
        assert!(error.contains("chunksize") && error.contains("chunk-size"), "{error}");
        assert!(defaults(&[("batch-size", "64K"), ("compressor", "none")]).is_err());
    }
}
