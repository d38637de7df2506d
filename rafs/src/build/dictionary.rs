//! A chunk dictionary: what other images hold already.

use std::collections::HashMap;

use super::BuildError;
use crate::blob::{Blob, BlobIndex, ChunkIndex};
use crate::digest::{Digest, DigestAlgorithm};
use crate::tree::{ChunkRef, Image, Kind, Tree};

/// The chunks of other images, by digest.
#[derive(Clone, Debug)]
pub struct Dictionary {
    blobs: Vec<Blob>,
    chunks: HashMap<Digest, (u32, ChunkRef)>,
}

impl Dictionary {
    /// The dictionary of an image's chunks: all that its blobs hold.
    pub fn new(image: Image) -> Self {
        let blobs = image.blobs;
        let mut chunks = HashMap::with_capacity(blobs.iter().map(|blob| blob.chunks.len()).sum());
        // One index of the layer is its own blob's.
        for (blob, number) in blobs.iter().take(BlobIndex::LIMIT - 1).zip(0u8..) {
            for (chunk, index) in blob.chunks.iter().zip(0u32..) {
                let found = ChunkRef { blob: BlobIndex(number), chunk: ChunkIndex(index) };
                chunks.entry(chunk.digest).or_insert((chunk.uncompressed_size, found));
            }
        }
        Self { blobs, chunks }
    }

    /// The blobs that hold them.
    pub fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    /// Where content of this digest and size in bytes is.
    pub(super) fn find(&self, digest: &Digest, size: u32) -> Option<ChunkRef> {
        let (found_size, found) = self.chunks.get(digest)?;
        (*found_size == size).then_some(*found)
    }

    /// Checks that a layer with these properties can refer to the dictionary's chunks.
    pub(super) fn check(&self, chunk_size: u32, digester: DigestAlgorithm) -> Result<(), BuildError> {
        match self.blobs.iter().find(|blob| blob.chunk_size != chunk_size || blob.digester != digester) {
            None => Ok(()),
            Some(blob) => Err(BuildError::Dictionary {
                found_size: blob.chunk_size,
                found_digester: blob.digester,
                chunk_size,
                digester,
            }),
        }
    }

    /// Appends the blobs that a layer's tree uses of the dictionary to its own one, and makes the tree refer to them by
    /// their place there.
    pub(super) fn append_used(&self, tree: &mut Tree, blobs: &mut Vec<Blob>) {
        let mut used = vec![None; self.blobs.len()];
        for node in tree.nodes_mut() {
            let Kind::Regular { chunks, .. } = &mut node.kind else { continue };
            for blob in chunks.iter_mut().map(|found| &mut found.blob).filter(|blob| blob.0 > 0) {
                let number = usize::from(blob.0 - 1);
                *blob = *used[number].get_or_insert_with(|| {
                    blobs.push(self.blobs[number].clone());
                    BlobIndex(
                        u8::try_from(blobs.len() - 1).expect("a dictionary has fewer blobs than an image"),
                    )
                });
            }
        }
    }
}

/// A chunk of the dictionary as a layer under construction refers to it: its blob index 0 is the layer's own blob.
pub(super) fn outside(found: ChunkRef) -> ChunkRef {
    ChunkRef { blob: BlobIndex(found.blob.0 + 1), ..found }
}
