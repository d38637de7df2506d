//! What all connections share.

use std::path::Path;
use std::sync::Arc;

use rafs::build::BuildOptions;
use registry::client::{Client, ClientConfig, Error};

use crate::attrs::Attrs;
use crate::config::{ExporterConfig, SocketAddress};
use crate::control::build::Builds;
use crate::convert::{Converter, Destination};

/// The exporter of one process.
#[derive(Debug)]
pub(crate) struct Exporter {
    config: ExporterConfig,
    client: Client,
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

    /// Where an output goes.
    pub(crate) fn destination(&self, attrs: &Attrs) -> Result<Destination, Error> {
        let (true, Some(name)) = (attrs.push, attrs.names.first()) else { return Ok(Destination::Nowhere) };
        let client = if attrs.insecure { self.insecure_client(name.host())? } else { self.client.clone() };
        Ok(Destination::Registry { client, repository: name.repository().clone() })
    }

    /// A client that takes `host` without TLS.
    fn insecure_client(&self, host: &str) -> Result<Client, Error> {
        let mut config: ClientConfig = self.config.registry.clone();
        let settings = config.hosts.entry(host.to_owned()).or_default();
        settings.plain_http.get_or_insert(true);
        settings.insecure_skip_verify = true;
        Client::new(config)
    }
}
