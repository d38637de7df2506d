//! Layers of several images, with the chunks that they share stored once.
//!
//! ```text
//! layers, each in a blob stream of its own ──decide──> where each chunk goes ──rewrite──> the layers' blobs
//!                                                                            ──write_shared──> blobs that they share
//! ```
//!
//! A chunk that blobs have which are stored already is read there. Of the others, those that two layers or more have go to a
//! shared blob, all others stay in the blob of their layer. Stored bytes are copied as they are. What goes where follows from
//! the contents alone, whatever the order in which layers come.
//!
//! - `decide`: which chunk goes where, within the number of blobs that an image may name.
//! - `write`: the blobs that this gives.
//! - `stored`: what blobs hold that are stored already.

mod decide;
mod stored;
mod write;

pub use decide::{ChunkHome, Decision, Holders, ImageUse, LayerChunks, LayerPlan, SharingLimits, decide};
pub use stored::{StoredError, read_chunks, read_layer};
pub use write::{SharedSource, WriteSharedError, rewrite, write_shared};

use crate::blob::Chunk;
use crate::digest::Digest;

/// Digest and size in bytes of a chunk's content.
pub type Content = (Digest, u32);

/// The content of a chunk.
pub fn content(chunk: &Chunk) -> Content {
    (chunk.digest, chunk.uncompressed_size)
}

#[cfg(test)]
mod tests;
