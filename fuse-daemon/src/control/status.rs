//! What a daemon says of itself.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::protocol::{BackendSpec, BlobId};
use crate::fs::Completeness;
pub use crate::process::{Condition as WorkerStatus, Guards};

/// Chunks that a status names at most as waited for.
pub const WAITING_LIMIT: usize = 64;

/// Backends that a status names at most.
pub const SOURCES_LIMIT: usize = 256;

/// What the daemon is and serves.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// What it serves, in order of ids.
    pub mounts: Vec<MountStatus>,
    /// Ids of mounts that another daemon served which has ended, and this one is about to. An older daemon does not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub coming: Vec<String>,
    /// The process that fetches for it. An older daemon has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerStatus>,
    /// What its cache takes. An older daemon does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheTotals>,
    /// Chunks that programs wait for, those first that are waited for longest: [`WAITING_LIMIT`] of them at most. An older daemon
    /// does not say.
    #[serde(default)]
    pub waiting: Vec<Waiting>,
    /// Where blobs of mounts are read from, those first that do not answer: [`SOURCES_LIMIT`] of them at most. An older daemon does not
    /// say.
    #[serde(default)]
    pub sources: Vec<SourceStatus>,
}

/// What the daemon is and serves, without what has to be counted.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Summary {
    /// The daemon's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// What it serves, in order of ids.
    pub mounts: Vec<MountSummary>,
    /// See [`Status::coming`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub coming: Vec<String>,
}

/// One mount.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct MountSummary {
    /// The id it was mounted with.
    pub id: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The blobs it reads from.
    pub blobs: Vec<BlobId>,
}

impl From<Status> for Summary {
    fn from(Status { version, pid, mounts, coming, .. }: Status) -> Self {
        let mount = |MountStatus { id, mountpoint, blobs, .. }| MountSummary { id, mountpoint, blobs };
        Self { version, pid, mounts: mounts.into_iter().map(mount).collect(), coming }
    }
}

/// A backend that blobs of mounts are read from, and how it answers. What is counted begins again with the worker's process, and when
/// nothing was mounted from there in between.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SourceStatus {
    /// Which it is.
    pub backend: BackendSpec,
    /// Whether it answers.
    pub state: SourceState,
    /// Requests that were sent to it. What the client of a registry sends again counts once.
    pub requests: u64,
    /// Those that it did not answer, or not as it should.
    pub failures: u64,
    /// Bytes of blobs that came from it.
    pub bytes: u64,
    /// How long ago it answered last, in milliseconds, if it has.
    pub answered_ago_ms: Option<u64>,
    /// The last failure, if there was one, though it may have answered since.
    pub failed: Option<SourceFailure>,
    /// How long nothing has come from it that requests wait for, in milliseconds, if that is too long.
    pub silent_ms: Option<u64>,
}

/// Whether a backend answers. In the order in which they are told.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceState {
    /// Requests wait, and nothing has come for a sixth of a read's deadline.
    Silent,
    /// The request that ended last was not answered, or not as it should be.
    Fails,
    /// The worker does not say it.
    Unknown,
    /// The request that ended last was answered.
    Answers,
    /// No request has ended.
    Unasked,
}

impl SourceState {
    /// All of them, in that order.
    pub const ALL: [Self; 5] = [Self::Silent, Self::Fails, Self::Unknown, Self::Answers, Self::Unasked];
}

impl fmt::Display for SourceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Silent => "silent",
            Self::Fails => "fails",
            Self::Unknown => "unknown",
            Self::Answers => "answers",
            Self::Unasked => "unasked",
        })
    }
}

/// A failure of a backend.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SourceFailure {
    /// How long ago it was, in milliseconds.
    pub ago_ms: u64,
    /// What happened: the worker's words, cut short, on one line.
    pub reason: String,
}

/// What a cache takes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CacheTotals {
    /// Blobs that it has chunks of.
    pub blobs: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes on disk that it may take, if that is limited.
    pub quota_bytes: Option<u64>,
    /// Bytes on disk that may give way to others: no mount uses them, and they are not pinned. An older daemon does not say.
    #[serde(default)]
    pub evictable_bytes: Option<u64>,
}

/// A chunk that programs wait for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Waiting {
    /// The blob that holds it.
    pub blob: BlobId,
    /// Its index there.
    pub chunk: u32,
    /// Reads that wait for it.
    pub readers: u64,
    /// How long the first of them has waited, in milliseconds.
    pub since_ms: u64,
    /// What was wrong with the bytes of the last backend that had others, if one had.
    pub refused: Option<String>,
}

/// One mount.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct MountStatus {
    /// The id it was mounted with.
    pub id: String,
    /// The bootstrap's file.
    pub bootstrap: PathBuf,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// What people call the image.
    pub image: String,
    /// Who has its blobs.
    pub backends: Vec<BackendSpec>,
    /// The blobs it reads from.
    pub blobs: Vec<BlobId>,
    /// How much of it is in the cache.
    #[serde(default)]
    pub chunks: Completeness,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_an_older_daemon_is_understood() {
        let said = r#"{"version":"0.1.0","pid":7,"mounts":[]}"#;
        let status: Status = serde_json::from_str(said).unwrap();
        assert_eq!((status.pid, status.worker, status.cache), (7, None, None));
        assert!(status.coming.is_empty() && status.waiting.is_empty() && status.sources.is_empty());
    }

    #[test]
    fn a_status_that_says_more_is_understood() {
        let said = r#"{"version":"9.0.0","pid":7,"mounts":[],"waiting":[],"weather":{"rain":true}}"#;
        assert_eq!(serde_json::from_str::<Status>(said).unwrap().version, "9.0.0");
    }
}
