//! What all runs share: registries, each behind a proxy that fails on purpose.

use std::path::Path;

use anyhow::Result;
use integration::fault_proxy::FaultProxy;
use integration::servers::EmbeddedRegistry;
use registry::Repository;
use registry::client::{Client, ClientConfig};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::image::Home;

pub(crate) struct Lab {
    registries: Vec<(EmbeddedRegistry, FaultProxy)>,
    client: Client,
    pub(super) runtime: Runtime,
    dir: TempDir,
}

impl Lab {
    pub(super) const REGISTRIES: usize = 3;

    pub(crate) fn new() -> Result<Self> {
        // Sockets are under it, and their paths may have 107 bytes.
        let dir = tempfile::Builder::new().prefix("nydus-cluster-node-").tempdir()?;
        let mut registries = Vec::new();
        for number in 0..Self::REGISTRIES {
            let registry = EmbeddedRegistry::start(&dir.path().join(format!("registry-{number}")))?;
            let proxy = FaultProxy::start(registry.address())?;
            registries.push((registry, proxy));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = Client::new(ClientConfig::default())?;
        Ok(Self { registries, client, runtime, dir })
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn proxy(&self, registry: usize) -> &FaultProxy {
        &self.registries[registry].1
    }

    /// What the repository is called, through its registry's proxy.
    pub(super) fn repository(&self, home: &Home) -> String {
        format!("{}/{}", self.proxy(home.registry).address(), home.repository)
    }

    pub(super) fn push(&self, home: &Home, blob: &[u8]) -> Result<()> {
        let registry = self.registries[home.registry].0.address();
        let repository = Repository::parse(&format!("{registry}/{}", home.repository))?;
        self.runtime.block_on(self.client.push_blob(&repository, blob.to_vec().into()))?;
        Ok(())
    }
}
