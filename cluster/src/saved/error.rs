//! Why saved images cannot be read, or are not those that are wanted.

use std::io;
use std::path::PathBuf;

use image::source::SourceError;
use rafs::share::StoredError;
use registry::{Digest, Reference};
use thiserror::Error;

use super::TableError;
use crate::lock::LockFileError;

/// Why saved images cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SavedError {
    /// There are none.
    #[error("no saved images are at {0}")]
    NotThere(String),
    /// Something else is there.
    #[error("what is at {place} are no saved images: {reason}")]
    Other {
        /// Where.
        place: String,
        /// What was expected.
        reason: String,
    },
    /// The registry does not give them.
    #[error(transparent)]
    Registry(#[from] registry::client::Error),
    /// A part of them cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The lock is broken.
    #[error(transparent)]
    Lock(#[from] LockFileError),
    /// The table is broken.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A layer's tree is broken.
    #[error(transparent)]
    Layer(#[from] StoredError),
    /// Nothing is known of a layer or a chain.
    #[error("the saved images have no {what} {digest}")]
    Unknown {
        /// `layer`, `chain with a bootstrap`, `blob`.
        what: &'static str,
        /// Its digest.
        digest: Digest,
    },
    /// A bootstrap is not what the table says.
    #[error("the bootstrap {digest}: {reason}")]
    Bootstrap {
        /// The blob that it is in.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// The thread that reads is gone.
    #[error("reading ended unexpectedly: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// An image was saved as another one than a lock says.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{image} was saved as {found}: expected {expected}, as the cluster image's lock says. The saved images {saved} are \
     those of another cluster image: save the images of this one"
)]
pub struct OtherImage {
    /// The image's name.
    pub image: Reference,
    /// Its digest in the lock.
    pub expected: Digest,
    /// Its digest in what was saved.
    pub found: Digest,
    /// The digest of what names all that was saved.
    pub saved: Digest,
}
