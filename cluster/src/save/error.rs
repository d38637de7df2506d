//! Why something is not saved.

use image::assemble::AssembleError;
use image::destination::StoreError;
use image::document::DocumentError;
use image::files::FilesError;
use image::layer::{ConvertError, FileError};
use image::options::OptionsError;
use image::source::SourceError;
use rafs::share::StoredError;
use registry::{Digest, Reference};
use thiserror::Error;

use super::LayoutError;
use crate::saved::{OtherImage, SavedError};

/// Why an image was not saved.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SaveError {
    /// It cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is not what the lock says.
    #[error("it is {found}: the lock says {locked}")]
    Moved {
        /// The digest that the lock says.
        locked: Digest,
        /// The digest that was found.
        found: Digest,
    },
    /// A document of it is none.
    #[error("manifest {digest}: {error}")]
    Document {
        /// The document.
        digest: Digest,
        /// What is wrong with it.
        error: DocumentError,
    },
    /// The lock names a platform's image that the index does not.
    #[error("the index does not name manifest {0}, which the lock does")]
    NotInIndex(Digest),
    /// A manifest and its config do not go together.
    #[error("manifest {digest}: {reason}")]
    NoImage {
        /// The manifest.
        digest: Digest,
        /// What is wrong.
        reason: String,
    },
    /// Indexes lie in indexes without end.
    #[error("indexes are nested more than {0} deep")]
    TooDeep(usize),
    /// It cannot be written to the directory.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// It cannot be pushed.
    #[error(transparent)]
    Push(#[from] registry::client::Error),
    /// It cannot be stored.
    #[error(transparent)]
    Store(Box<StoreError>),
    /// A layer cannot be converted.
    #[error(transparent)]
    Convert(#[from] Box<FileError>),
    /// A converted layer cannot be stored.
    #[error(transparent)]
    Share(#[from] Box<ConvertError>),
    /// A converted layer, or a blob at the destination, is broken.
    #[error(transparent)]
    Stored(#[from] Box<StoredError>),
    /// The nydus image cannot be made.
    #[error(transparent)]
    Assemble(#[from] Box<AssembleError>),
    /// What an earlier save left cannot be read.
    #[error(transparent)]
    Saved(#[from] Box<SavedError>),
    /// The cluster image's blobs cannot be read.
    #[error("{image}: {error}")]
    ClusterImage {
        /// The cluster image.
        image: Box<Reference>,
        /// Why.
        error: Box<FilesError>,
    },
    /// What was saved before are other images.
    #[error(transparent)]
    OtherImage(#[from] Box<OtherImage>),
    /// Converted layers cannot wait.
    #[error("cannot keep converted layers: {}: {error}", path.display())]
    Spool {
        /// The file or folder.
        path: std::path::PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The base is in another repository, or the images go to a directory.
    #[error("{base} is not in the repository that images are saved to: its blobs cannot be used there")]
    Base {
        /// The base.
        base: Reference,
    },
    /// The options do not go together.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// A thread is gone.
    #[error("saving ended unexpectedly: {0}")]
    Panicked(#[from] tokio::task::JoinError),
    /// This cannot be.
    #[error("{0}: this is an error in nydus-cluster")]
    Internal(&'static str),
    /// A blob did not come, or is not what it should be.
    #[error("blob {digest}: {reason}")]
    Blob {
        /// The blob.
        digest: Digest,
        /// Why it did not.
        reason: String,
    },
}

macro_rules! boxed {
    ($($error:ty),*) => {
        $(impl From<$error> for SaveError {
            fn from(error: $error) -> Self {
                Box::new(error).into()
            }
        })*
    };
}

boxed!(FileError, ConvertError, StoredError, AssembleError, SavedError);

impl From<StoreError> for SaveError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

/// An image that could not be saved.
#[derive(Debug, Error)]
#[error("{image}: {error}")]
pub struct Failed {
    /// Its name.
    pub image: Reference,
    /// Why.
    pub error: SaveError,
}

/// Why not everything is saved.
#[derive(Debug, Error)]
pub enum NotSaved {
    /// It cannot go where it should.
    #[error(transparent)]
    Destination(Box<SaveError>),
    /// Some images could not be saved. The others are.
    #[error("{} images are not saved", .0.len())]
    Images(Vec<Failed>),
}

impl From<SaveError> for NotSaved {
    fn from(error: SaveError) -> Self {
        Self::Destination(Box::new(error))
    }
}
