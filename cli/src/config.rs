//! The configuration file: one for all roles, each with its section.

use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::logging;

/// Where the configuration is looked for when none is named.
const DEFAULT_FILE: &str = "/etc/nydus-cluster/config.toml";

/// The whole file. Every key has a default, unknown keys are errors.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// What is logged and how.
    pub(crate) log: logging::LogConfig,
    /// How registries are reached, by every role.
    pub(crate) registry: registry::client::ClientConfig,
    /// `nydus-cluster exporter`.
    pub(crate) exporter: exporter::ExporterConfig,
    /// `nydus-cluster snapshotter`.
    pub(crate) snapshotter: snapshotter::SnapshotterConfig,
    /// `nydus-cluster daemon`.
    pub(crate) daemon: fuse_daemon::DaemonConfig,
    /// `nydus-cluster cluster …`.
    pub(crate) cluster: cluster::ClusterConfig,
    /// `nydus-cluster registry serve`.
    pub(crate) server: registry::server::ServerConfig,
}

impl Config {
    /// Reads `file`, or the default one if that exists, or takes the defaults.
    pub(crate) fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let default = Path::new(DEFAULT_FILE);
        let Some(file) = file.or_else(|| default.exists().then_some(default)) else {
            return Ok(Self::default());
        };
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the configuration file {}", file.display()))?;
        toml::from_str(&text).with_context(|| format!("configuration file {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_holds_the_defaults() {
        let text = include_str!("../../docs/config.toml");
        assert_eq!(toml::from_str::<Config>(text).unwrap(), Config::default());
    }

    #[test]
    fn an_unknown_key_is_named_with_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        std::fs::write(&file, "[exporter]\nlisten = \"unix:///run/x.sock\"\nport = 1\n").unwrap();
        let error = format!("{:#}", Config::load(Some(&file)).unwrap_err());
        assert!(error.contains("config.toml") && error.contains("port"), "{error}");
    }
}
