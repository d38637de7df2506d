//! What all connections share.

use std::path::Path;
use std::sync::Arc;

use rafs::build::BuildOptions;
use registry::client::{Client, Error};

use crate::config::{ExporterConfig, SocketAddress};
use crate::control::build::Builds;
use crate::convert::Converter;

/// The exporter of one process.
#[derive(Debug)]
pub(crate) struct Exporter {
    config: ExporterConfig,
    /// Reaches registries as configured.
    pub(crate) client: Client,
    /// Builds under way.
    pub(crate) builds: Arc<Builds>,
    /// Converts layers.
    pub(crate) converter: Converter,
}

impl Exporter {
    /// An exporter with nothing to do.
    pub(crate) fn new(config: ExporterConfig) -> Result<Self, Error> {
        let client = Client::new(config.registry.clone())?;
        let options = BuildOptions { threads: config.threads, ..BuildOptions::default() };
        let converter = Converter::new(options, config.conversions.max(1), config.layer_cache_bytes);
        Ok(Self { config, client, builds: Arc::default(), converter })
    }

    /// buildkitd's socket.
    pub(crate) fn upstream(&self) -> &Path {
        self.config.upstream.path()
    }

    /// Our socket.
    pub(crate) fn listen(&self) -> &SocketAddress {
        &self.config.listen
    }
}
