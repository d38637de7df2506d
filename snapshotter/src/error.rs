//! Why an operation on snapshots failed.

use std::path::PathBuf;

use crate::control::{NodeImageError, SetError};
use crate::filter::FilterError;
use crate::state::Kind;

/// Why an operation on snapshots failed. `service::status` maps each kind to a gRPC code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No snapshot has that key.
    #[error("snapshot {key:?} does not exist")]
    NotFound {
        /// The key asked for.
        key: String,
    },
    /// A snapshot was to be made on a parent that is not there.
    #[error("parent {parent:?} of snapshot {key:?} does not exist")]
    ParentNotFound {
        /// The snapshot that was to be made or committed.
        key: String,
        /// The missing parent.
        parent: String,
    },
    /// The key is taken.
    #[error("snapshot {key:?} already exists")]
    AlreadyExists {
        /// The key.
        key: String,
    },
    /// Not a failure: containerd is told so that the layer is in place and need not be fetched.
    #[error("layer {target:?} is read on demand and needs no download: target snapshot already exists")]
    LayerInPlace {
        /// The chain id that containerd gave in `containerd.io/snapshot.ref`.
        target: String,
    },
    /// Only committed snapshots can be parents.
    #[error("parent {parent:?} of snapshot {key:?} is not a committed snapshot but {kind}")]
    ParentNotCommitted {
        /// The snapshot that was to be made or committed.
        key: String,
        /// Its parent.
        parent: String,
        /// What the parent is.
        kind: Kind,
    },
    /// The operation is not for snapshots of this kind.
    #[error("snapshot {key:?} is {kind}, expected {expected}")]
    WrongKind {
        /// The snapshot.
        key: String,
        /// What it is.
        kind: Kind,
        /// What the operation is for.
        expected: &'static str,
    },
    /// Others are made on this snapshot.
    #[error("cannot remove snapshot {key:?}: it is the parent of {child:?}")]
    HasChildren {
        /// The snapshot.
        key: String,
        /// One of its children.
        child: String,
    },
    /// A commit named another parent than the one the snapshot was made on.
    #[error("cannot commit snapshot {key:?} on {given:?}: it was made on {made_on:?}")]
    ParentChanged {
        /// The snapshot.
        key: String,
        /// The parent it was made on.
        made_on: String,
        /// The parent that the commit named.
        given: String,
    },
    /// An update named a field that does not change.
    #[error("cannot update field {field:?} of snapshot {key:?}: only labels change")]
    ImmutableField {
        /// The snapshot.
        key: String,
        /// The field.
        field: String,
    },
    /// A value of a request is not acceptable.
    #[error("{what}: {problem}")]
    Invalid {
        /// The value.
        what: String,
        /// What is wrong with it and what is expected.
        problem: String,
    },
    /// A filter does not parse.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// An image set is not sound.
    #[error(transparent)]
    Set(#[from] SetError),
    /// A node image is not sound.
    #[error(transparent)]
    NodeImage(#[from] NodeImageError),
    /// A file system was asked for whose layers are nydus blobs without the metadata that gives them meaning.
    #[error(
        "snapshot {key:?} has nydus data layers without a bootstrap layer above them: nothing can be mounted"
    )]
    NoBootstrap {
        /// The snapshot that was to be made.
        key: String,
    },
    /// A bootstrap layer was unpacked, but the bootstrap is not in it, or is something else than a regular file.
    #[error("snapshot {key:?} is a nydus bootstrap layer without the regular file {}", path.display())]
    BootstrapMissing {
        /// The snapshot.
        key: String,
        /// Where the bootstrap should be.
        path: PathBuf,
    },
    /// Nobody said which image a bootstrap belongs to, so its blobs cannot be located.
    #[error(
        "bootstrap snapshot {key:?} has no image reference, so its blobs cannot be located: none of the labels {labels} \
         (with CRI set disable_snapshot_annotations = false), and {lookup}"
    )]
    NoImageReference {
        /// The bootstrap's snapshot.
        key: String,
        /// The labels that were looked for.
        labels: String,
        /// What came of asking containerd.
        lookup: String,
    },
    /// A registry does not give an image's blobs to this node.
    #[error("image {image} cannot be read on demand: {message}")]
    BlobRefused {
        /// The image's reference.
        image: String,
        /// The registry's answer.
        message: String,
    },
    /// A container's ids are to be mapped by its mounts, and the kernel cannot do that for a nydus image.
    #[error(
        "snapshot {key:?} is to have its ids mapped on a nydus image, which needs Linux {needed}, and this is Linux {found}: \
         take remap-ids out of this snapshotter's capabilities in containerd's configuration"
    )]
    IdMappingUnsupported {
        /// The snapshot.
        key: String,
        /// The kernel that can.
        needed: &'static str,
        /// The kernel that runs.
        found: String,
    },
    /// An image could not be mounted.
    #[error("cannot mount image {image}: {failure}")]
    Mount {
        /// The image's reference.
        image: String,
        /// What happened.
        failure: MountFailure,
    },
    /// The daemon cannot be reached or did not do what was asked.
    #[error("nydus daemon: {problem}")]
    Daemon {
        /// What happened.
        problem: String,
    },
    /// The database failed.
    #[error("cannot {doing} in the snapshots' database")]
    State {
        /// What was being done.
        doing: &'static str,
        /// The database's error.
        source: Box<redb::Error>,
    },
    /// The database holds what this version did not write.
    #[error("the record of {what} in the snapshots' database cannot be read: {problem}")]
    Record {
        /// Whose record.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// A file or directory operation failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The socket cannot be listened on.
    #[error(transparent)]
    Bind(#[from] service::BindError),
    /// Metrics cannot be served.
    #[error(transparent)]
    Metrics(#[from] service::metrics::MetricsError),
    /// The socket could not be served.
    #[error("cannot serve on {}", path.display())]
    Serve {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A task ended without a result: a bug, or the process ends.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Why an image could not be mounted. All callers that waited for the same attempt get a copy.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MountFailure {
    /// The image itself is at fault.
    #[error("{0}")]
    Image(String),
    /// The daemon or the system is at fault; a later attempt may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// It took too long.
    #[error("not served within {0:?}")]
    Deadline(std::time::Duration),
}

impl Error {
    /// An error of a file operation, for `map_err`.
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
