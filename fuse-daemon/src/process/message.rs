//! What the front's process and the worker's say to each other, one JSON text a message. Descriptors come with some.
//!
//! What the worker says is believed nothing: a message that cannot be meant ends it.

use std::fmt;
use std::path::PathBuf;

use rafs::blob::ChunkIndex;
use registry::client::{Connection, RepositoryAccess};
use serde::{Deserialize, Serialize};

use super::names::NameFiles;
use super::shape::{BlobShape, OrderShape};
use crate::cache::Generation;
use crate::control::{BackendSpec, BlobId};
use crate::front::{ChunkError, ChunkKey};
use crate::worker::{HostTotals, Place, SourceReport, StoredPart};

/// Bytes of a message to the worker at most: an order of a batch of the smallest chunks is some megabytes.
pub(super) const TO_WORKER_LIMIT: usize = 64 << 20;

/// Bytes of a message of the worker at most: none says more than an error.
pub(super) const FROM_WORKER_LIMIT: usize = 64 << 10;

/// Characters of a worker's text that are kept.
const TEXT_LIMIT: usize = 1024;

/// What the front tells the worker.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ToWorker {
    /// The first message; with the memory that chunks are decoded into.
    Start(Box<Start>),
    /// Blobs are to be read from a backend as well.
    Register {
        /// By which it is forgotten.
        number: u64,
        blobs: Vec<BlobId>,
        backend: BackendSpec,
        place: Place,
        /// The number of the host that its requests count for.
        host: u32,
        /// How an HTTP directory's host is reached.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        connection: Option<Connection>,
    },
    /// How a repository is read from now on; without, nobody reads it any longer.
    Access { registry: String, repository: String, access: Option<RepositoryAccess> },
    /// By what names of hosts are looked up from now on.
    Names(NameFiles),
    /// They are not any longer.
    Forget { number: u64 },
    /// Bring chunks.
    Fetch(OrderShape),
    /// A reader waits for a chunk.
    Hurry(ChunkName),
    /// What was delivered there was copied: the memory is free.
    Released { at: u64 },
    /// Bring a blob's chunk information; with the file to write it to.
    ChunkInfo {
        number: u64,
        blob: BlobShape,
        /// How long it may take.
        milliseconds: u64,
    },
    /// Ask a backend, by the number that it was registered with, whether it has a blob.
    Has {
        number: u64,
        registration: u64,
        blob: BlobId,
        /// How long it may take.
        milliseconds: u64,
    },
    /// Bring a part of a blob; with the file to write it to.
    Part {
        number: u64,
        part: StoredPart,
        /// How long it may take.
        milliseconds: u64,
    },
    /// Say how backends answer, each by the number of one of its registrations.
    Sources { number: u64, registrations: Vec<u64> },
    /// Say what is counted of hosts.
    Totals { number: u64 },
    /// The answer to a question, with the file that it asked for.
    Answer { number: u64, answer: WorkerAnswer },
    /// To be echoed.
    Ping { number: u64 },
}

/// What a worker has to know before it locks itself up.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Start {
    /// Size in bytes of the memory.
    pub(crate) memory_bytes: u64,
    /// Stored bytes in memory at most.
    pub(crate) buffer_bytes: usize,
    /// Threads that decode.
    pub(crate) threads: usize,
    /// How long a backend may not get on before another one is asked as well, in milliseconds.
    pub(crate) patience_milliseconds: u64,
    /// The user that it becomes.
    pub(crate) user: u32,
    /// How registries are reached, as far as it is no file.
    pub(crate) registry: registry::client::ClientConfig,
    /// By what names of hosts are looked up.
    pub(crate) names: NameFiles,
}

/// What the worker tells the front.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum FromWorker {
    /// It is locked up and works.
    Ready { guards: Guards },
    /// Chunks of one blob are in the shared memory, one behind the other.
    Delivered {
        blob: BlobId,
        generation: u64,
        /// Of each its index, and how many bytes it has.
        chunks: Vec<(u32, u32)>,
        /// Where they begin, and what is released when they were copied.
        at: u64,
        /// The backend's name.
        from: String,
    },
    /// A chunk will not come.
    Failed { chunk: ChunkName, failure: ChunkFailure },
    /// Chunk information is in the file that came with the order.
    ChunkInfo { number: u64, outcome: Result<InfoLengths, String> },
    /// Whether a backend has a blob, or why not.
    Has { number: u64, outcome: Result<(), String> },
    /// A part of a blob is in the file that came with the order, and has so many bytes.
    Part { number: u64, outcome: Result<u64, String> },
    /// How backends answer, in the order in which they were asked about; nothing of those that are not registered.
    Sources { number: u64, sources: Vec<Option<SourceReport>> },
    /// What is counted of hosts since the process runs, each with its number.
    Totals { number: u64, hosts: Vec<(u32, HostTotals)> },
    /// It needs something that only the front can have.
    Ask { number: u64, question: Question },
    /// The echo of a ping.
    Pong { number: u64 },
}

/// Which guards hold a worker: those that the kernel, or the rights of the daemon, do not allow are missing.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Guards {
    /// It runs as a user of its own.
    pub user: bool,
    /// It has no capabilities and cannot get any.
    pub capabilities: bool,
    /// Landlock: it has no file system.
    pub landlock: bool,
    /// A list of system calls that it may use.
    pub seccomp: bool,
}

impl Guards {
    /// Names of those that are missing.
    pub fn missing(&self) -> Vec<&'static str> {
        let all = [
            (self.user, "a user of its own"),
            (self.capabilities, "no capabilities"),
            (self.landlock, "no file system (Landlock)"),
            (self.seccomp, "a list of system calls (seccomp)"),
        ];
        all.into_iter().filter(|(holds, _)| !holds).map(|(_, name)| name).collect()
    }
}

/// Where in the file the parts of chunk information are: one after the other, in this order.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InfoLengths {
    pub(crate) header: u64,
    pub(crate) array: u64,
    pub(crate) tail: u64,
    pub(crate) digests: u64,
    pub(crate) stream_size: u64,
}

/// What the worker may ask.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Question {
    /// A blob's file in a directory that is a backend of it.
    File { directory: PathBuf, blob: BlobId },
    /// Other credentials for a repository: those that there are were refused.
    Renew { registry: String, repository: String },
}

/// What it is told.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum WorkerAnswer {
    /// The file came along; it has so many bytes.
    File { bytes: u64 },
    /// What credentials there are was said.
    Renewed,
    /// It is not to be.
    Refused { reason: String },
}

/// A chunk's name in messages.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChunkName {
    blob: BlobId,
    generation: u64,
    chunk: u32,
}

impl From<ChunkKey> for ChunkName {
    fn from(key: ChunkKey) -> Self {
        Self { blob: key.blob, generation: key.generation.0, chunk: key.chunk.0 }
    }
}

impl From<ChunkName> for ChunkKey {
    fn from(name: ChunkName) -> Self {
        Self { blob: name.blob, generation: Generation(name.generation), chunk: ChunkIndex(name.chunk) }
    }
}

/// Why a chunk will not come: what of [`ChunkError`] a worker can know.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ChunkFailure {
    Fetch { reason: String },
    Late { reason: String },
    Corrupt { from: String, reason: String },
    Exhausted,
    Lost,
    Unknown,
}

impl From<ChunkError> for ChunkFailure {
    fn from(error: ChunkError) -> Self {
        match error {
            ChunkError::Fetch(reason) => Self::Fetch { reason: clip(&reason) },
            ChunkError::Late(reason) => Self::Late { reason: clip(&reason) },
            ChunkError::Corrupt { from, reason } => {
                Self::Corrupt { from: from.to_string(), reason: clip(&reason) }
            }
            ChunkError::Exhausted => Self::Exhausted,
            ChunkError::Lost => Self::Lost,
            // The cache is none of the worker's business.
            ChunkError::Unknown | ChunkError::Cache(_) | ChunkError::Deadly => Self::Unknown,
        }
    }
}

impl From<ChunkFailure> for ChunkError {
    fn from(failure: ChunkFailure) -> Self {
        match failure {
            ChunkFailure::Fetch { reason } => Self::Fetch(clip(&reason)),
            ChunkFailure::Late { reason } => Self::Late(clip(&reason)),
            ChunkFailure::Corrupt { from, reason } => {
                Self::Corrupt { from: clip(&from).into(), reason: clip(&reason) }
            }
            ChunkFailure::Exhausted => Self::Exhausted,
            ChunkFailure::Lost => Self::Lost,
            ChunkFailure::Unknown => Self::Unknown,
        }
    }
}

/// A message that cannot be meant.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Violation {
    /// It is no message.
    #[error("what is no message: {0}")]
    Message(String),
    /// Chunks outside the shared memory.
    #[error("chunks of {len} bytes at {at} of the shared memory, which has {memory} bytes")]
    Outside { at: u64, len: u64, memory: u64 },
}

/// What a worker says, out of the bytes of a message.
pub(crate) fn parse(message: &[u8]) -> Result<FromWorker, Violation> {
    serde_json::from_slice(message).map_err(|error| Violation::Message(clip(&error.to_string())))
}

/// A worker's text as it may be logged: short, and on one line.
pub(crate) fn clip(text: &str) -> String {
    text.chars().take(TEXT_LIMIT).map(|c| if c.is_control() { '?' } else { c }).collect()
}

impl fmt::Display for Guards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.missing() {
            missing if missing.is_empty() => f.write_str("all"),
            missing => write!(f, "all but: {}", missing.join(", ")),
        }
    }
}
