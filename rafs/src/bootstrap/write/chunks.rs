//! The chunk table: every chunk that a file refers to, once.

use std::io::Write;

use zerocopy::IntoBytes;

use super::WriteError;
use super::blobs::BlobSet;
use crate::layout::chunk_table::ChunkEntry;
use crate::layout::flags::chunk::{BATCH, COMPRESSED};
use crate::tree::ChunkRef;

/// A use of a chunk by a file, at an offset in bytes in that file.
pub(super) type PlacedChunk = (ChunkRef, u64);

/// The chunks in use, by blob and index. (Upstream sorts by digest; nothing depends on it, and with this order a reader
/// finds a chunk by binary search.)
pub(super) struct Table(Vec<PlacedChunk>);

impl Table {
    pub(super) fn new(mut uses: Vec<PlacedChunk>) -> Self {
        uses.sort_unstable();
        uses.dedup_by_key(|(chunk, _)| *chunk);
        Self(uses)
    }

    pub(super) fn size(&self) -> u64 {
        self.0.len() as u64 * size_of::<ChunkEntry>() as u64
    }

    pub(super) fn write(&self, blobs: &BlobSet<'_>, out: &mut impl Write) -> Result<(), WriteError> {
        for &(at, file_offset) in &self.0 {
            let (blob_index, chunk) = blobs.chunk(at)?;
            let compressed = if chunk.compressed { COMPRESSED } else { 0 };
            let batch = if chunk.batch.is_some() { BATCH } else { 0 };
            let entry = ChunkEntry {
                digest: chunk.digest.0,
                blob_index: u32::from(blob_index).into(),
                flags: (compressed | batch).into(),
                compressed_size: if chunk.batch.is_some() { 0 } else { chunk.compressed_size }.into(),
                uncompressed_size: chunk.uncompressed_size.into(),
                compressed_offset: chunk.compressed_offset.into(),
                uncompressed_offset: chunk.uncompressed_offset.into(),
                file_offset: file_offset.into(),
                index: at.chunk.0.into(),
                crc32: 0.into(),
            };
            out.write_all(entry.as_bytes())?;
        }
        Ok(())
    }
}
