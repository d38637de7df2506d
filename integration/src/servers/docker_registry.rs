//! Debian's `docker-registry` (CNCF distribution 2.8).

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{START_DEADLINE, accepts, free_address};
use crate::peers;
use crate::process::Server;

/// How the registry is to run.
#[derive(Debug, Clone, Default)]
pub struct DockerRegistryOptions {
    /// A storage directory to serve instead of a new one.
    pub storage: Option<PathBuf>,
    /// An htpasswd file (bcrypt) of those who may use it.
    pub htpasswd: Option<PathBuf>,
}

/// A running docker-registry.
#[derive(Debug)]
pub struct DockerRegistry {
    server: Server,
    address: SocketAddr,
}

impl DockerRegistry {
    /// Starts the registry with configuration and storage under `dir`.
    pub fn start(dir: &Path, options: &DockerRegistryOptions) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let address = free_address()?;
        let storage = options.storage.clone().unwrap_or_else(|| dir.join("storage"));
        let mut config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    \
             enabled: true\nhttp:\n  addr: {address}\n",
            storage.display()
        );
        if let Some(htpasswd) = &options.htpasswd {
            config += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", htpasswd.display());
        }
        let config_file = dir.join("config.yml");
        fs::write(&config_file, config)?;
        let mut command = Command::new(peers::system("docker-registry")?);
        command.arg("serve").arg(config_file).env("OTEL_TRACES_EXPORTER", "none");
        let mut server = Server::spawn("docker-registry", command, dir.join("docker-registry.log"))?;
        server.wait_ready(START_DEADLINE, || accepts(address))?;
        Ok(Self { server, address })
    }

    /// Where it listens; also the host part of its image names.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }
}
