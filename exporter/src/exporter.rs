//! What all connections share: the settings, and the builds, sessions and room of one process.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cluster::ClusterConfig;
use cluster::save::LayerSpace;
use image::destination::{DiskSpace, DiskUse, SpoolSpace};
use image::layer::{Converter, LayerCache, ScratchSpace};
use image::options::{Options, OptionsError, Recipe, Used, Word};
use registry::client::Client;
use service::UnixAddress;

use crate::build::documents::ChangeRoom;
use crate::build::name_turns::NameTurns;
use crate::build::{Builds, TOGETHER};
use crate::config::ExporterConfig;
use crate::follow::LocalStore;
use crate::metrics::Metrics;
use crate::session::Sessions;

/// The most threads that one conversion takes unless told otherwise: at about 250 MB/s each they outrun what buildkitd sends,
/// and every one costs some 5 MB of buffers.
const DEFAULT_THREADS_LIMIT: usize = 4;

/// What [`Exporter::archive_space`] is for.
const ARCHIVES: DiskUse = DiskUse {
    what: "tars that are gathered for clients",
    setting: "exporter.archive_bytes",
    of: "all builds",
    instead: "write tar=false,dest=DIRECTORY with the output, which needs none of it",
};

/// What [`Exporter::document_space`] is for.
const DOCUMENTS: DiskUse = DiskUse {
    what: "large documents of images, such as SBOMs,",
    setting: "exporter.document_bytes",
    of: "all builds",
    instead: "build without SBOMs",
};

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
    /// Room for tars on their way to clients.
    pub(crate) archive_space: Arc<DiskSpace>,
    /// Room for documents of images that do not stay in memory.
    pub(crate) document_space: Arc<DiskSpace>,
    /// Room in memory for documents of images that are changed.
    pub(crate) change_room: Arc<ChangeRoom>,
    /// Room for archives of container images, and for images that are put together of several.
    pub(crate) together_space: Arc<DiskSpace>,
    /// Room for layers of container images that wait until it is known what they share.
    pub(crate) layer_space: Arc<LayerSpace>,
    /// Which build changes the index of which name.
    pub(crate) name_turns: Arc<NameTurns>,
}

impl Exporter {
    /// An exporter with nothing to do.
    pub(crate) fn new(config: ExporterConfig) -> Result<Self, SettingsError> {
        let defaults = defaults(&config.options)?;
        let client = Client::new(config.registry.clone())?.with_silence_limit(config.silence_limit());
        let mut cache = LayerCache::new(config.layer_cache_bytes);
        if !config.layer_cache_dir.as_os_str().is_empty() {
            cache = cache.on_disk(&config.layer_cache_dir, config.layer_cache_disk_bytes);
        }
        let converter = Converter::new(Recipe::default(), config.conversions, cache);
        let spool_dir = &config.registry.upload.spool_dir;
        let space = SpoolSpace::new(spool_dir, config.ahead_bytes);
        let scratch_space = ScratchSpace::new(spool_dir, config.flatten_bytes);
        let archive_space = DiskSpace::new(spool_dir, config.archive_bytes, &ARCHIVES);
        let document_space = DiskSpace::new(spool_dir, config.document_bytes, &DOCUMENTS);
        let together_space = DiskSpace::new(spool_dir, config.cluster.save_spool_bytes, &TOGETHER);
        let layer_space = LayerSpace::new(config.cluster.save_spool_bytes);
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
            archive_space,
            document_space,
            change_room: Arc::default(),
            together_space,
            layer_space,
            name_turns: Arc::default(),
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

    /// How long a registry may take until it answers for the first time.
    pub(crate) fn answer_patience(&self) -> Duration {
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
    pub(crate) fn content_store(&self) -> Option<Arc<LocalStore>> {
        let dir = self.config.content_store.as_deref()?;
        Some(Arc::new(LocalStore::new(dir, Arc::clone(&self.space))))
    }

    /// Room for blobs of which it is not known yet whose they are.
    pub(crate) fn space(&self) -> &Arc<SpoolSpace> {
        &self.space
    }

    /// Our socket.
    pub(crate) fn listen(&self) -> &UnixAddress {
        &self.config.listen
    }
}

/// The options that a configuration makes the defaults.
fn defaults(configured: &BTreeMap<String, String>) -> Result<Options, SettingsError> {
    let mut options = Options::default();
    for (key, value) in configured {
        if !options.set(Used::Build, key, value)? {
            let known = Word::all(Used::Build).map(|word| word.name).collect::<Vec<_>>().join(", ");
            return Err(SettingsError::UnknownOption { key: key.clone(), known });
        }
    }
    options.check()?;
    Ok(options)
}

/// Settings with which the exporter does not run.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
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
    /// The settings for registries are wrong.
    #[error("registry settings: {0}")]
    Registry(#[from] registry::client::Error),
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
