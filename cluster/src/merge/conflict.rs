//! How images that are merged contradict each other.

use rafs::blob::BlobIndex;
use registry::Digest;
use thiserror::Error;

/// Two images say different things.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conflict {
    /// A file in `registry/`.
    #[error("{one} and {other} have different files {path}")]
    File {
        /// The file.
        path: String,
        /// One of the images.
        one: String,
        /// The other one.
        other: String,
    },
    /// An image of their locks.
    #[error("the locks of {one} and {other} say different things of {image}")]
    Locked {
        /// The container image.
        image: String,
        /// One of the images.
        one: String,
        /// The other one.
        other: String,
    },
    /// A part of what was saved for them.
    #[error("the saved images of {one} and {other} describe the {what} {digest} differently")]
    Described {
        /// `chain`, `blob`.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// One of the images.
        one: String,
        /// The other one.
        other: String,
    },
    /// What was saved for them cannot be run together.
    #[error(
        "the saved images of {one} and {other} have chunks of different sizes or digests: save the images of one of them again, as \
         those of the other are saved"
    )]
    Chunks {
        /// One of the images.
        one: String,
        /// The other one.
        other: String,
    },
    /// Layers that several saves made have chunks in too many blobs.
    #[error(
        "the layers of chain {chain} would be read from {blobs} blobs, expected at most {}: save the images of {} again, in one repository",
        BlobIndex::LIMIT, images.join(", ")
    )]
    Blobs {
        /// The chain.
        chain: Digest,
        /// How many blobs they name.
        blobs: usize,
        /// The images.
        images: Vec<String>,
    },
    /// The platforms of their locks.
    #[error("the locks of {one} and {other} are for different platforms: lock both for the same ones")]
    Platforms {
        /// One of the images.
        one: String,
        /// The other one.
        other: String,
    },
}
