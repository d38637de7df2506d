//! The messages of the control socket.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use rafs::digest::{Digest, ParseDigestError};
use serde::{Deserialize, Serialize};

/// Version of the messages. A daemon refuses others by name rather than guess at what they mean.
pub const VERSION: u32 = 1;

/// Bytes that a line may have. A status of thousands of mounts fits; what is larger is no message of ours.
pub const LINE_LIMIT: usize = 4 << 20;

/// A blob by its digest, `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BlobId(pub Digest);

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl FromStr for BlobId {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix("sha256:").unwrap_or(text).parse().map(Self)
    }
}

impl Serialize for BlobId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BlobId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a client sends: one line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// What is asked for.
    pub request: Request,
}

/// What a client asks for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Mount an image; answered with [`Answer::Done`] once it serves. A repetition with equal content changes nothing.
    Mount(MountRequest),
    /// Unmount; answered with [`Answer::Done`], also when there is no such mount.
    Umount {
        /// The mount's id.
        id: String,
    },
    /// Answered with [`Answer::Status`].
    Status,
    /// How much of blobs is in the cache; answered with [`Answer::Usage`].
    Usage {
        /// The blobs.
        blobs: Vec<BlobId>,
    },
    /// Delete blobs that no mount uses from the cache; answered with [`Answer::Removed`].
    RemoveBlobs {
        /// The blobs.
        digests: Vec<BlobId>,
    },
    /// Unmount what is unused, then end the daemon if nothing is left; answered with [`Answer::Shutdown`].
    Shutdown,
}

/// An image to mount.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MountRequest {
    /// Names the mount towards the client, in logs and in `/proc/mounts`: 1 to 128 letters, digits, `.`, `_` or `-`.
    pub id: String,
    /// The bootstrap's file. It has to stay there, unchanged, as long as the mount.
    pub bootstrap: PathBuf,
    /// Where to mount; made with its parents if missing.
    pub mountpoint: PathBuf,
    /// Reference of the image; its blobs are fetched from the repository that it names.
    pub image: String,
}

/// What the daemon answers: one line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Reply {
    /// [`VERSION`] of the daemon.
    pub version: u32,
    /// The result.
    pub answer: Answer,
}

/// The result of a request.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// What the daemon is and serves.
    Status(Status),
    /// Bytes on disk of each blob asked about, in that order.
    Usage {
        /// Bytes, 0 for blobs the cache does not hold.
        bytes: Vec<u64>,
    },
    /// What became of each blob.
    Removed(Removed),
    /// The ids of mounts that are in use; the daemon ends only when there are none.
    Shutdown {
        /// Mount ids.
        in_use: Vec<String>,
    },
    /// The request failed.
    Error {
        /// What kind of failure it is, for programs.
        kind: ErrorKind,
        /// What happened, for people.
        message: String,
    },
}

/// What the daemon is and serves.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// What it serves, in order of ids.
    pub mounts: Vec<MountStatus>,
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
    /// The image's reference.
    pub image: String,
    /// The blobs it reads from.
    pub blobs: Vec<BlobId>,
}

/// What became of blobs that were to be removed from the cache. Those not named were not there.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Removed {
    /// Deleted from the cache.
    pub removed: Vec<BlobId>,
    /// Kept, because a mount reads from them.
    pub in_use: Vec<BlobId>,
}

/// What kind of failure a request met.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request is not a message of this version, or a value in it is not valid.
    Invalid,
    /// The id is in use by a mount of other content.
    Conflict,
    /// The bootstrap cannot be read or is no bootstrap.
    Bootstrap,
    /// The operating system refused, or something else failed.
    Failed,
}
