//! Debian's `docker-registry` (CNCF distribution 2.8).

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use test_support::log::distribution_address_in;

use super::START_DEADLINE;
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
        let storage = options.storage.clone().unwrap_or_else(|| dir.join("storage"));
        let mut config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    \
             enabled: true\nhttp:\n  addr: 127.0.0.1:0\n",
            storage.display()
        );
        if let Some(htpasswd) = &options.htpasswd {
            config += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", htpasswd.display());
        }
        let config_file = dir.join("config.yml");
        fs::write(&config_file, config)?;
        let mut command = Command::new(peers::system("docker-registry")?);
        command.arg("serve").arg(config_file).env("OTEL_TRACES_EXPORTER", "none");
        let log = dir.join("docker-registry.log");
        // One before this one may have written to the same log.
        let begin = fs::metadata(&log).map_or(0, |metadata| metadata.len()) as usize;
        let mut server = Server::spawn("docker-registry", command, log.clone())?;
        let mut listening = None;
        server.wait_ready(START_DEADLINE, || {
            let said = fs::read(&log).unwrap_or_default();
            let said = String::from_utf8_lossy(said.get(begin..).unwrap_or_default());
            listening = distribution_address_in(&said);
            listening.is_some()
        })?;
        let address = listening.context("docker-registry is ready and does not say where")?;
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
