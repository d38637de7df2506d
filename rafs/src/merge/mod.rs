//! From layers to an image: what a container sees when they are stacked.
//!
//! Whiteouts and opaque directories of OCI (`.wh.name`, `.wh..wh..opq`) and of overlayfs (character device 0/0, the
//! attribute `overlay.opaque`) remove what is below and are not part of the image. They are applied in every layer, in the
//! first too, where they remove nothing. What is not removed is as overlayfs shows it: a directory above a directory has
//! the upper one's metadata and both's entries, everything else replaces what is below.
//!
//! Content that an earlier layer's blob has is referred to there, so no node fetches or stores it twice.

mod blobs;
mod open;
mod overlay;
mod whiteout;

pub use open::{OpenLayerError, open_layer};
pub(crate) use whiteout::WHITEOUT_PREFIX;

use crate::blob::Contradiction;
use crate::digest::{Digest, DigestAlgorithm};
use crate::tree::{Image, Layer};

/// Why layers cannot be merged.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// Layers differ in chunk size.
    #[error(
        "layer {layer} has chunks of {found} bytes and the layers below have chunks of {expected} bytes: \
         an image has one chunk size"
    )]
    ChunkSize {
        /// The layer, 0 being the lowest.
        layer: usize,
        /// Its chunk size in bytes.
        found: u32,
        /// That of the layers below.
        expected: u32,
    },
    /// Layers differ in digest algorithm.
    #[error(
        "layer {layer} has {found} digests and the layers below have {expected} digests: \
         an image has one digest algorithm"
    )]
    Digester {
        /// The layer, 0 being the lowest.
        layer: usize,
        /// Its algorithm.
        found: DigestAlgorithm,
        /// That of the layers below.
        expected: DigestAlgorithm,
    },
    /// The image needs more blobs than the format allows.
    #[error("the image needs more than {limit} blobs, the most that RAFS v6 allows: use fewer layers")]
    TooManyBlobs {
        /// The most that are possible.
        limit: usize,
    },
    /// A blob has no name, so nothing could find it.
    #[error("blob {blob} of layer {layer} has chunks and no id")]
    NoId {
        /// The layer, 0 being the lowest.
        layer: usize,
        /// The blob in that layer.
        blob: usize,
    },
    /// Two layers say different things of the same blob: one of them is not what it was.
    #[error("layer {layer} says of blob {blob}, which a layer below it has too, {difference}")]
    Contradiction {
        /// The layer, 0 being the lowest.
        layer: usize,
        /// The blob.
        blob: Digest,
        /// What they say.
        difference: Contradiction,
    },
    /// A file refers to a chunk that its layer does not have.
    #[error("a file of layer {layer} refers to chunk {chunk} of blob {blob}, which the layer does not have")]
    NoChunk {
        /// The layer, 0 being the lowest.
        layer: usize,
        /// The blob in that layer.
        blob: usize,
        /// The chunk in that blob.
        chunk: u32,
    },
}

/// Merges layers, the lowest first.
///
/// Blobs are in order of first use by the files of the image, these in order of their paths; blobs that no file uses are
/// dropped.
///
/// # Errors
///
/// When the layers differ in chunk size or digest algorithm, contradict each other, or use more than 254 blobs.
pub fn merge(layers: Vec<Layer>) -> Result<Image, MergeError> {
    let (trees, blobs): (Vec<_>, Vec<_>) = layers.into_iter().map(|layer| (layer.tree, layer.blobs)).unzip();
    let pool = blobs::Pool::new(blobs)?;
    let stacked = overlay::stack(trees);
    pool.assign(stacked)
}

#[cfg(test)]
mod tests;
