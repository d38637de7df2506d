//! Why an image cannot be read, said so that a person finds the byte.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use registry::client;
use registry::digest::{Digest, UnsupportedAlgorithm};

/// Why an image, or a part of one, cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The registry did not give it.
    #[error(transparent)]
    Registry(#[from] client::Error),
    /// A file of this machine cannot be read.
    #[error("{place}: {error}")]
    Io {
        /// The file, and what it is in.
        place: String,
        /// Why.
        error: io::Error,
    },
    /// A tar is broken.
    #[error("{}, entry at offset {offset}: {reason}", path.display())]
    Archive {
        /// The tar.
        path: PathBuf,
        /// Where its entry's header is, in bytes (of the tar, if the file is compressed).
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// Something that another part names is not there.
    #[error("{place} does not exist")]
    Missing {
        /// What, and where it was looked for.
        place: String,
    },
    /// A document is not what it should be.
    #[error("{place}: {reason}")]
    Document {
        /// Which one.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A document is larger than any such document is.
    #[error("{place} has {size} bytes: at most {limit} are read")]
    TooLarge {
        /// Which one.
        place: String,
        /// Its size in bytes.
        size: u64,
        /// The most that is read, in bytes.
        limit: u64,
    },
    /// The size is not that of the descriptor.
    #[error("{place} has {found} bytes: its descriptor says {expected}")]
    Size {
        /// What.
        place: String,
        /// The bytes that the descriptor says.
        expected: u64,
        /// The bytes that there are, as far as was read.
        found: u64,
    },
    /// The content is not what its digest says.
    #[error("{place} has digest {found}: expected {expected}")]
    Digest {
        /// What.
        place: String,
        /// The digest that it is named by.
        expected: Digest,
        /// The digest of its content.
        found: Digest,
    },
    /// A digest that cannot be verified.
    #[error(transparent)]
    UnsupportedDigest(#[from] UnsupportedAlgorithm),
    /// There is no nydus image, or none that is wanted.
    #[error("{source_name} is {what}; expected a nydus image")]
    NoNydusImage {
        /// The image.
        source_name: String,
        /// What it is.
        what: String,
    },
    /// It is not said which image is meant.
    #[error("{source_name} holds {count} images: choose one of {images}")]
    SeveralImages {
        /// The layout or archive.
        source_name: String,
        /// How many there are.
        count: usize,
        /// How each is chosen, separated by commas.
        images: String,
    },
    /// No image has the name.
    #[error("{source_name} holds no image {wanted:?}, but {images}")]
    NoSuchImage {
        /// The layout or archive.
        source_name: String,
        /// The name asked for.
        wanted: String,
        /// How each image that there is is chosen, separated by commas.
        images: String,
    },
    /// This is no source of an image with manifest and layers.
    #[error("{location} holds no image that can be read this way")]
    NoImage {
        /// Where.
        location: String,
    },
    /// No image of an index is for a platform asked for.
    #[error("{source_name} has no image for {wanted}; it has {found}")]
    NoSuchPlatform {
        /// The image.
        source_name: String,
        /// The platform asked for.
        wanted: String,
        /// The platforms that there are, separated by commas.
        found: String,
    },
    /// It is something else than an image.
    #[error("{source_name} is {what}; expected an image")]
    NotAnImage {
        /// Its name.
        source_name: String,
        /// What it is, such as `a Helm chart (…)`.
        what: String,
    },
    /// Indexes lie in indexes without end.
    #[error("{source_name}: indexes are nested more than {limit} deep")]
    TooDeep {
        /// The image.
        source_name: String,
        /// How deep they may be.
        limit: usize,
    },
    /// The thread that reads is gone.
    #[error("reading ended unexpectedly: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

impl SourceError {
    pub(super) fn document(place: impl Into<String>, reason: impl ToString) -> Self {
        Self::Document { place: place.into(), reason: reason.to_string() }
    }

    pub(crate) fn io(place: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let place = place.into();
        move |error| match error.kind() {
            io::ErrorKind::NotFound => Self::Missing { place },
            _ => Self::Io { place, error },
        }
    }
}
