//! What the database holds of a snapshot.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Labels of a snapshot.
pub(crate) type Labels = BTreeMap<String, String>;

/// Number of a snapshot, given once and never again; names its directories and its mount.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub(crate) struct SnapshotId(pub(crate) u64);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a snapshot is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Read-only look at its parent.
    View,
    /// Being written.
    Active,
    /// Final, and possibly a parent.
    Committed,
}

impl Kind {
    /// The name that filters use.
    pub fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A point in time, as precise as containerd's.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) struct Timestamp {
    /// Since the epoch.
    pub(crate) seconds: i64,
    /// Within the second.
    pub(crate) nanoseconds: i32,
}

impl Timestamp {
    pub(crate) fn now() -> Self {
        // A clock before 1970 is no reason to fail a container; it then says 1970.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            seconds: since.as_secs().try_into().unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos().try_into().unwrap_or(0),
        }
    }
}

/// Resources that a snapshot takes beside its parents.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Usage {
    /// Files, directories and so on.
    pub(crate) inodes: i64,
    /// Bytes on disk.
    pub(crate) size: i64,
}

/// One snapshot.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Record {
    pub(crate) id: SnapshotId,
    pub(crate) kind: Kind,
    pub(crate) parent: Option<String>,
    pub(crate) labels: Labels,
    pub(crate) created: Timestamp,
    pub(crate) updated: Timestamp,
    /// Set on commit.
    pub(crate) usage: Usage,
    /// It was taken from an image set: it has no files, and what it needs is in a row of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) lazy: bool,
}

impl Record {
    pub(super) fn decode(key: &str, bytes: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(bytes)
            .map_err(|error| Error::Record { what: format!("snapshot {key:?}"), problem: error.to_string() })
    }

    pub(super) fn encode(&self, key: &str) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self)
            .map_err(|error| Error::Record { what: format!("snapshot {key:?}"), problem: error.to_string() })
    }
}

/// An image that is or was mounted, kept until its mount and cache are gone.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct MountedImage {
    /// Its reference.
    pub(crate) reference: String,
    /// Other names of it, whose repositories have its blobs too.
    #[serde(default)]
    pub(crate) names: Vec<String>,
    /// The blobs it reads from.
    pub(crate) blobs: Vec<String>,
}
