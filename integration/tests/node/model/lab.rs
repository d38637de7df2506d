//! What all runs share: registries and a web server, each behind a proxy that fails on purpose, and directories.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fuse_daemon::control::{BackendSpec, BlobId};
use integration::fault_proxy::FaultProxy;
use integration::servers::EmbeddedRegistry;
use registry::Repository;
use registry::client::{Client, ClientConfig};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::image::{Home, Origin};
use super::web::WebServer;

/// Where the web server's files are, and those of no server.
const WEB: &str = "web";
const LOCAL: &str = "local";

pub(crate) struct Lab {
    registries: Vec<EmbeddedRegistry>,
    _web: WebServer,
    /// Of the registries, and of the web server.
    proxies: Vec<FaultProxy>,
    client: Client,
    pub(super) runtime: Runtime,
    dir: TempDir,
}

impl Lab {
    const REGISTRIES: usize = 3;
    /// Servers that may fail.
    pub(super) const REMOTES: usize = Self::REGISTRIES + 1;
    pub(super) const ORIGINS: [Origin; Self::REMOTES + 1] =
        [Origin::Remote(0), Origin::Remote(1), Origin::Remote(2), Origin::Remote(3), Origin::Local];

    pub(crate) fn new() -> Result<Self> {
        // Sockets are under it, and their paths may have 107 bytes.
        let dir = tempfile::Builder::new().prefix("nydus-cluster-node-").tempdir()?;
        let registries: Result<Vec<_>> = (0..Self::REGISTRIES)
            .map(|number| EmbeddedRegistry::start(&dir.path().join(format!("registry-{number}"))))
            .collect();
        let registries = registries?;
        let web = WebServer::start(&dir.path().join(WEB))?;
        let addresses = registries.iter().map(EmbeddedRegistry::address).chain([web.address()]);
        let proxies: Result<Vec<_>> = addresses.map(FaultProxy::start).collect();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = Client::new(ClientConfig::default())?;
        Ok(Self { registries, _web: web, proxies: proxies?, client, runtime, dir })
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn proxy(&self, remote: usize) -> &FaultProxy {
        &self.proxies[remote]
    }

    /// A part of the paths of all requests for blobs, or of those for one.
    pub(super) fn path_of(remote: usize, blob: Option<BlobId>) -> String {
        match blob {
            None => "/blobs/".to_owned(),
            Some(blob) if remote < Self::REGISTRIES => format!("/blobs/{blob}"),
            Some(blob) => format!("/blobs/{}", blob.0),
        }
    }

    /// What the daemon is told of it: all but directories of the machine is reached through a proxy.
    pub(super) fn backend(&self, home: &Home) -> BackendSpec {
        let Origin::Remote(remote) = home.origin else {
            return BackendSpec::Directory { path: self.directory(home) };
        };
        let address = self.proxy(remote).address();
        match remote < Self::REGISTRIES {
            true => BackendSpec::Registry { repository: format!("{address}/{}", home.name) },
            false => BackendSpec::HttpDirectory { url: format!("http://{address}/{}/blobs", home.name) },
        }
    }

    /// Where a directory's files are, on a server or not.
    fn directory(&self, home: &Home) -> PathBuf {
        let root = if home.origin == Origin::Local { LOCAL } else { WEB };
        self.dir().join(root).join(&home.name).join("blobs")
    }

    pub(super) fn push(&self, home: &Home, id: BlobId, blob: &[u8]) -> Result<()> {
        if let Origin::Remote(remote) = home.origin
            && let Some(registry) = self.registries.get(remote)
        {
            let repository = Repository::parse(&format!("{}/{}", registry.address(), home.name))?;
            self.runtime.block_on(self.client.push_blob(&repository, blob.to_vec().into()))?;
            return Ok(());
        }
        let directory = self.directory(home);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(id.0.to_string()), blob).context("putting a blob into a directory")
    }
}
