//! The messages of the snapshotter's control socket.

use fuse_daemon::control::BackendSpec;
use serde::{Deserialize, Serialize};

use super::ImageSet;

/// The newest version of the messages that this end speaks.
pub const VERSION: u32 = 1;

/// The oldest version that this end speaks.
pub const OLDEST_VERSION: u32 = 1;

/// Bytes that a line may have: a set of some 100,000 chains.
pub const LINE_LIMIT: usize = 64 << 20;

/// What a client sends: one line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The newest version that the sender speaks; the request is written in it.
    pub version: u32,
    /// The oldest version in which the sender understands an answer. Without: `version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<u32>,
    /// What is asked for.
    pub request: Request,
}

/// What a client asks for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Run these images as RAFS when they are pulled from now on, instead of what a set of the same name said; answered with
    /// [`Answer::Done`] once that is on disk.
    Put(Box<ImageSet>),
    /// Pull what only the set of this name has as it is from now on; answered with [`Answer::Done`], also where there is no such set.
    /// What was pulled stays as it is.
    Remove {
        /// The set's name.
        name: String,
    },
    /// Answered with [`Answer::Sets`].
    List,
}

/// What the snapshotter answers: one line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Reply {
    /// The version of the answer: the newest that both ends speak.
    pub version: u32,
    /// The result.
    pub answer: Answer,
}

/// The result of a request.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done {
        /// Whether anything is otherwise than before.
        changed: bool,
    },
    /// All sets.
    Sets {
        /// In order of their names.
        sets: Vec<SetStatus>,
    },
    /// The request failed, and changed nothing.
    Error {
        /// What kind of failure it is, for programs.
        kind: ErrorKind,
        /// What happened, for people.
        message: String,
    },
}

/// What is known of a set.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SetStatus {
    /// Its name.
    pub name: String,
    /// Who has its blobs.
    pub backends: Vec<BackendSpec>,
    /// How many chains of layers it has.
    pub chains: u64,
    /// How many of these are an image's.
    pub images: u64,
    /// How many layers on this node are its, pulled and not removed.
    pub layers: u64,
}

/// What kind of failure a request met.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request is not a message of this version, or the set is not sound.
    Invalid,
    /// The two ends speak no common version.
    Version,
    /// The disk refused, or something else failed.
    Failed,
}
