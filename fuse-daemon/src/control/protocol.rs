//! The messages of the control socket.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use rafs::digest::{Digest, ParseDigestError};
use registry::Reference;
use registry::client::RepositoryAccess;
use registry::reference::InvalidReference;
use serde::{Deserialize, Serialize};
use service::control;

use super::status::{CacheTotals, Status, Summary};
use crate::fuse::Negotiated;

/// The newest version of the messages that this end speaks.
pub const VERSION: u32 = 2;

/// The oldest version that this end speaks. Version 1 named an image where 2 names backends.
pub const OLDEST_VERSION: u32 = 2;

/// Bytes that a line may have. A status of thousands of mounts fits; what is larger is no message of ours.
pub const LINE_LIMIT: usize = 4 << 20;

/// What is asked of the daemon, and answered.
#[derive(Clone, Copy, Debug)]
pub struct DaemonProtocol;

impl control::Protocol for DaemonProtocol {
    const SERVER: &'static str = "daemon";
    const VERSION: u32 = VERSION;
    const OLDEST_VERSION: u32 = OLDEST_VERSION;
    const LINE_LIMIT: usize = LINE_LIMIT;
    type Request = Request;
    type Answer = Answer;
    type Kind = ErrorKind;
    const INVALID: ErrorKind = ErrorKind::Invalid;
    const NO_COMMON_VERSION: ErrorKind = ErrorKind::Version;
}

/// What a client sends.
pub type Call = control::Call<Request>;

/// What the daemon answers.
pub type Reply = control::Reply<Answer, ErrorKind>;

/// A request that failed.
pub type Failure = control::Failure<ErrorKind>;

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

/// What a client asks for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Mount an image; answered with [`Answer::Done`] once it serves. A repetition changes nothing, but that backends
    /// which are new in it are added.
    Mount(MountRequest),
    /// Make the file of a bootstrap that can be mounted, out of what an image's backends have; answered with [`Answer::Done`] once
    /// all of it is on disk.
    MakeBootstrap(BootstrapRequest),
    /// Add backends to a mounted image, behind those that it has; answered with [`Answer::Done`].
    AddBackends {
        /// The mount's id.
        id: String,
        /// Who has its blobs as well. Those that it has already change nothing.
        backends: Vec<BackendSpec>,
    },
    /// Unmount; answered with [`Answer::Done`], also when there is no such mount.
    Umount {
        /// The mount's id.
        id: String,
    },
    /// Answered with [`Answer::Status`], for which much is counted, and the worker asked.
    Status,
    /// What is served, as a sign of life: nothing is counted for it, and nobody asked; answered with [`Answer::Summary`]. An older
    /// daemon does not know it.
    Summary,
    /// What the cache takes; answered with [`Answer::CacheTotals`]. An older daemon does not know it.
    CacheTotals,
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
    /// Free all of the cache but these blobs, pinned ones and those that mounts use; answered with [`Answer::Kept`]. What a mount
    /// uses that is not named goes when the last mount of it ends, unless it is named or mounted again before.
    Keep {
        /// The blobs.
        blobs: Vec<BlobId>,
    },
    /// What the cache holds; answered with [`Answer::Cached`].
    Cached,
    /// Free all that no mount uses and that is not pinned; answered with [`Answer::Kept`].
    Prune,
    /// Keep blobs from being pruned or giving way to others, or no longer; answered with [`Answer::Done`].
    Pin {
        /// The blobs, which need not be there yet.
        blobs: Vec<BlobId>,
        /// `false`: no longer.
        pinned: bool,
    },
    /// Verify what the cache holds; answered with [`Answer::Verified`].
    Verify {
        /// The blobs; none: all.
        blobs: Vec<BlobId>,
    },
    /// Which files of a mount were read; answered with [`Answer::Trace`].
    Trace {
        /// The mount's id.
        id: String,
    },
    /// What another daemon needs to go on serving a mount; answered with [`Answer::Handover`], and a descriptor. From
    /// then on the mount is left in place when this daemon ends.
    Handover {
        /// The mount's id.
        id: String,
    },
    /// Go on serving a mount whose daemon has ended; comes with its descriptor. Answered with [`Answer::Done`], also if it
    /// is served already.
    Adopt(Handover),
    /// Read repositories so from now on, instead of as our own files say; answered with [`Answer::Done`].
    HandOut {
        /// Where they are read, and with which credentials.
        accesses: Vec<HandedOut>,
    },
    /// Which repositories' credentials were refused, to be handed out again; answered with [`Answer::Renewals`] as soon as
    /// there are some, or with none after a while. Whoever asks is the broker as long as it asks again.
    Renewals {
        /// The while, in seconds: a minute at most.
        wait_seconds: u64,
    },
    /// Unmount what is unused, then end the daemon if nothing is left; answered with [`Answer::Shutdown`].
    Shutdown,
    /// Make place for the program that is at this one's place now, if that would work and somebody holds all mounts: the daemon ends, and
    /// leaves them for the next; answered with [`Answer::Upgrade`].
    Upgrade,
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
    /// What people call the image, for logs and status.
    pub image: String,
    /// Who has its blobs: at least one. They are asked in this order, but those that failed lately last.
    pub backends: Vec<BackendSpec>,
}

/// A bootstrap to make.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BootstrapRequest {
    /// The file, whose directory is there. One that is there is replaced, at once and as a whole; chunk information that comes with it is
    /// put beside it.
    pub target: PathBuf,
    /// What people call the image, for logs.
    pub image: String,
    /// Who has what it is made of: at least one, asked as for [`MountRequest::backends`].
    pub backends: Vec<BackendSpec>,
    /// What it is made of.
    pub source: BootstrapSource,
}

/// What a bootstrap is made of.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BootstrapSource {
    /// An image's layer with a bootstrap: a tar with `image/image.boot`, compressed by gzip or zstd.
    Packed {
        /// The layer's blob.
        blob: BlobId,
        /// Its size in bytes.
        size: u64,
        /// SHA-256 of the tar.
        diff_id: BlobId,
    },
    /// The own trees of layers, which are merged.
    Layers {
        /// The lowest first.
        layers: Vec<LayerTree>,
    },
}

/// A layer's own tree, at the end of its blob.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LayerTree {
    /// The blob.
    pub blob: BlobId,
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of its table of contents with the tar header of that.
    pub toc: BlobId,
    /// Where the tree's stored bytes begin: a bootstrap, zstd.
    pub offset: u64,
    /// How many there are.
    pub stored_bytes: u64,
    /// SHA-256 of the bootstrap.
    pub digest: BlobId,
    /// Size in bytes of the bootstrap.
    pub bytes: u64,
}

/// Who has blobs, and how they are reached there.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BackendSpec {
    /// A repository of a registry.
    Registry {
        /// `HOST[:PORT]/NAME`, in any form that references allow, but without tag and digest.
        repository: String,
    },
    /// A directory of this machine, in which each blob is a file named by its 64 hexadecimal digits.
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// The same on an HTTP server that answers ranged requests.
    HttpDirectory {
        /// Its URL, `http://…` or `https://…`. One that ends in a colon is what the digits of blobs are added to: upstream's
        /// nydus-backend-proxy, which names blobs by digest, is `http://HOST:PORT/NAMESPACE/REPOSITORY/blobs/sha256:`. Certificate authorities are those of the registry settings for its host.
        url: String,
    },
}

impl BackendSpec {
    /// The repository of an image, named by its reference.
    ///
    /// # Errors
    ///
    /// [`InvalidReference`].
    pub fn of_image(reference: &str) -> Result<Self, InvalidReference> {
        let reference = Reference::parse(reference)?;
        let repository = reference.repository();
        Ok(Self::Registry { repository: format!("{}/{}", repository.host(), repository.name()) })
    }
}

impl fmt::Display for BackendSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { repository } => write!(f, "repository {repository}"),
            Self::Directory { path } => write!(f, "directory {}", path.display()),
            Self::HttpDirectory { url } => write!(f, "HTTP directory {url}"),
        }
    }
}

/// How a repository is read.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HandedOut {
    /// `HOST[:PORT]/NAME`, as in [`BackendSpec::Registry`].
    pub repository: String,
    /// Where, and with which credentials.
    pub access: RepositoryAccess,
}

/// A mount, as another daemon can go on serving it. Together with its FUSE descriptor, which keeps the mount alive: while
/// somebody holds that, who reads from a mount without a daemon waits.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    /// What was mounted, and who had its blobs when this was asked for.
    pub mount: MountRequest,
    /// The mount's device number.
    pub device: u64,
    /// What kernel and daemon agreed on.
    pub negotiated: Negotiated,
}

/// The result of a request that did not fail.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// What the daemon is and serves.
    Status(Status),
    /// The same, without what is counted.
    Summary(Summary),
    /// What the cache takes.
    CacheTotals(CacheTotals),
    /// What another daemon needs.
    Handover(Handover),
    /// Bytes on disk of each blob asked about, in that order.
    Usage {
        /// Bytes, 0 for blobs the cache does not hold.
        bytes: Vec<u64>,
    },
    /// What became of each blob.
    Removed(Removed),
    /// What was freed.
    Kept(Kept),
    /// What the cache holds.
    Cached {
        /// In order of blobs.
        blobs: Vec<CachedStatus>,
    },
    /// What was verified.
    Verified(Verified),
    /// Repositories whose credentials were refused.
    Renewals {
        /// As they were handed out.
        repositories: Vec<String>,
    },
    /// The files that were read.
    Trace {
        /// Their paths, in the order in which each was read first. Those that are not UTF-8 are left out.
        paths: Vec<String>,
    },
    /// The ids of mounts that are in use; the daemon ends only when there are none.
    Shutdown {
        /// Mount ids.
        in_use: Vec<String>,
    },
    /// The daemon ends, and makes place.
    Upgrade {
        /// The version of the program that would work.
        version: String,
    },
}

/// What became of blobs that were to be removed from the cache. Those not named were not there.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Removed {
    /// Deleted from the cache.
    pub removed: Vec<BlobId>,
    /// Kept, because a mount reads from them.
    pub in_use: Vec<BlobId>,
}

/// What freeing all blobs but some came to.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Kept {
    /// Deleted from the cache.
    pub freed: Vec<BlobId>,
    /// Bytes on disk that they took.
    pub freed_bytes: u64,
    /// Not to be kept, but in use: deleted with the last mount that reads from them.
    pub in_use: Vec<BlobId>,
}

/// What the cache holds of a blob.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CachedStatus {
    /// The blob.
    pub blob: BlobId,
    /// Bytes on disk.
    pub bytes: u64,
    /// Whether a mount reads from it.
    pub mounted: bool,
    /// Whether it is kept from being pruned and from giving way to others.
    pub pinned: bool,
    /// When it was used last, in seconds since 1970.
    pub last_used: u64,
}

/// What verifying the cache came to.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Verified {
    /// Chunks that were verified.
    pub chunks: u64,
    /// Blobs with chunks that were bad, which are fetched again when they are read.
    pub bad: Vec<BadChunks>,
}

/// Chunks of a blob that were bad.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BadChunks {
    /// The blob.
    pub blob: BlobId,
    /// How many.
    pub chunks: u64,
}

/// What kind of failure a request met.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request is not a message of this version, or a value in it is not valid.
    Invalid,
    /// The two ends speak no common version.
    Version,
    /// The id is in use by a mount of other content.
    Conflict,
    /// There is no mount of this id.
    Unknown,
    /// The bootstrap cannot be read or is no bootstrap.
    Bootstrap,
    /// The operating system refused, or something else failed.
    Failed,
}
