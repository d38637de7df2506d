//! What a user can set, and every default.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How cluster images are worked on.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// The program `helm`. Default: the first one in `PATH`.
    pub helm: Option<PathBuf>,
    /// What the rendering of one chart may take, in seconds. Default: 60.
    pub helm_seconds: u64,
    /// How many bytes of layers a `cluster save`, and each build that embeds images, has waiting on this machine at once, until it is
    /// known which chunks they share; and how many of archives of images, of all builds of an exporter together, or of one command.
    /// Default: 16 GiB.
    pub save_spool_bytes: u64,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self { helm: None, helm_seconds: 60, save_spool_bytes: 16 << 30 }
    }
}
