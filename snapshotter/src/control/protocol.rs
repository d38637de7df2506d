//! The messages of the snapshotter's control socket.

use std::path::PathBuf;

use ::service::control;

use fuse_daemon::control::BackendSpec;
use serde::{Deserialize, Serialize};

use super::{ImageSet, NodeImage};

/// What is asked of the snapshotter, and answered.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotterProtocol;

impl control::Protocol for SnapshotterProtocol {
    const SERVER: &'static str = "snapshotter";
    /// Version 1 has no node images.
    const VERSION: u32 = 2;
    const OLDEST_VERSION: u32 = 1;
    /// A set of some 100,000 chains.
    const LINE_LIMIT: usize = 64 << 20;
    type Request = Request;
    type Answer = Answer;
    type Kind = ErrorKind;
    const INVALID: ErrorKind = ErrorKind::Invalid;
    const NO_COMMON_VERSION: ErrorKind = ErrorKind::Version;
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
    /// Mount this image for the node itself, from now on and after each start, instead of what was mounted under its name; answered with
    /// [`Answer::Mounted`] once it serves and that is on disk.
    Mount(Box<NodeImage>),
    /// Mount the node image of this name no longer; answered with [`Answer::Done`], also where there is none.
    Unmount {
        /// The image's name.
        name: String,
    },
    /// Answered with [`Answer::NodeImages`].
    NodeImages,
}

/// The result of a request that did not fail.
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
    /// A node image serves.
    Mounted {
        /// Where: the same until another image takes its place.
        mountpoint: PathBuf,
        /// Whether anything is otherwise than before.
        changed: bool,
    },
    /// All node images.
    NodeImages {
        /// In order of their names.
        images: Vec<NodeImageStatus>,
    },
}

/// What is known of a node image.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NodeImageStatus {
    /// Its name.
    pub name: String,
    /// Who has its blobs.
    pub backends: Vec<BackendSpec>,
    /// Where it is mounted, or will be once it can.
    pub mountpoint: PathBuf,
    /// Whether it is mounted, as far as anybody has looked.
    pub mounted: bool,
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
    /// The request is not a message of this version, or the set or node image is not sound.
    Invalid,
    /// The two ends speak no common version.
    Version,
    /// The disk refused, or something else failed.
    Failed,
}
