//! What a user can set about the exporter, and every default.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use registry::client::ClientConfig;
use serde::{Deserialize, Serialize};

/// How the exporter runs.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExporterConfig {
    /// buildkitd's socket. Default: `unix:///run/buildkit/buildkitd.sock`.
    pub upstream: SocketAddress,
    /// The socket that BuildKit clients use instead. Default: `unix:///run/nydus-cluster/exporter.sock`.
    pub listen: SocketAddress,
    /// The directory of buildkitd's content store, if the exporter may read it: layers are then read from there, while
    /// buildkitd still writes them, instead of coming over the session. Default: none.
    pub content_store: Option<PathBuf>,
    /// How registries are reached: of a section of its own in the configuration file, which all roles share.
    #[serde(skip)]
    pub registry: ClientConfig,
    /// Layers converted at once, over all builds; at least 1. Each takes about 40 MB. Default: 2.
    pub conversions: usize,
    /// Worker threads of one conversion; 0: one a core, four at most. Default: 0.
    pub threads: usize,
    /// Bytes of memory for what is known of converted layers, so that a rebuild moves only new ones. Default: 32 MiB.
    pub layer_cache_bytes: usize,
}

impl Default for ExporterConfig {
    fn default() -> Self {
        Self {
            upstream: SocketAddress(PathBuf::from("/run/buildkit/buildkitd.sock")),
            listen: SocketAddress(PathBuf::from("/run/nydus-cluster/exporter.sock")),
            content_store: None,
            registry: ClientConfig::default(),
            conversions: 2,
            threads: 0,
            layer_cache_bytes: 32 << 20,
        }
    }
}

/// A local socket, written `unix:///PATH` or as a path.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct SocketAddress(PathBuf);

/// A text that is no local socket.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no local socket: expected unix:///PATH")]
pub struct ParseSocketAddressError(String);

impl SocketAddress {
    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl From<PathBuf> for SocketAddress {
    fn from(path: PathBuf) -> Self {
        Self(path)
    }
}

impl FromStr for SocketAddress {
    type Err = ParseSocketAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        if path.is_empty() || path.contains("://") {
            return Err(ParseSocketAddressError(text.to_owned()));
        }
        Ok(Self(PathBuf::from(path)))
    }
}

impl TryFrom<String> for SocketAddress {
    type Error = ParseSocketAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

impl From<SocketAddress> for String {
    fn from(address: SocketAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_a_path_with_or_without_scheme() {
        for text in ["unix:///run/a.sock", "/run/a.sock"] {
            let address: SocketAddress = text.parse().unwrap();
            assert_eq!(address.path(), Path::new("/run/a.sock"));
            assert_eq!(address.to_string(), "unix:///run/a.sock");
        }
        for text in ["", "unix://", "tcp://127.0.0.1:1234"] {
            assert!(text.parse::<SocketAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn unknown_keys_are_refused_and_missing_ones_have_defaults() {
        let config: ExporterConfig =
            serde_json::from_str(r#"{"threads": 3, "content_store": "/content"}"#).unwrap();
        assert_eq!(config.threads, 3);
        assert_eq!(config.content_store.as_deref(), Some(Path::new("/content")));
        assert_eq!(config.upstream, ExporterConfig::default().upstream);
        assert!(serde_json::from_str::<ExporterConfig>(r#"{"thread": 3}"#).is_err());
    }
}
