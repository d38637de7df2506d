//! Chunk-table entries, which both versions have.

use super::{At, ReadError};
use crate::blob::{BatchMember, Blob, BlobIndex, Chunk, ChunkIndex};
use crate::digest::Digest;
use crate::layout::chunk_table::ChunkEntry;
use crate::layout::flags::blob as blob_flags;
use crate::layout::flags::chunk as flags;
use crate::layout::{BLOCK_SIZE, CHUNK_SIZE_LIMIT};

/// What an entry says, if it is possible in its blob. Of a batch member, index and offset in the batch are not known
/// here and are 0; so is its offset in the blob, where nydus-image wrote the entry.
pub(super) fn decode(entry: &ChunkEntry, blob: &Blob, index: ChunkIndex) -> Result<Chunk, ReadError> {
    let corrupt = |expected, found: String| {
        Err(ReadError::corrupt("chunk table entry", At::Number(u64::from(index.0)), expected).found(found))
    };
    let bits = entry.flags.get();
    if bits & flags::ENCRYPTED != 0 {
        return Err(ReadError::Unsupported("an encrypted chunk (AES-128-XTS)"));
    }
    // nydus-image sets no flag. What is stored by itself has a size.
    let is_member = bits & flags::BATCH != 0
        || blob.features & blob_flags::BATCH != 0 && entry.compressed_size.get() == 0;
    let chunk = Chunk {
        digest: Digest(entry.digest),
        compressed_offset: entry.compressed_offset.get(),
        compressed_size: entry.compressed_size.get(),
        uncompressed_offset: entry.uncompressed_offset.get(),
        uncompressed_size: entry.uncompressed_size.get(),
        compressed: bits & flags::COMPRESSED != 0,
        batch: is_member.then_some(BatchMember { index: 0, offset: 0 }),
    };
    if chunk.uncompressed_size == 0 || chunk.uncompressed_size > blob.chunk_size {
        return corrupt("an uncompressed size from 1 to the chunk size", chunk.uncompressed_size.to_string());
    }
    if chunk.compressed_size > CHUNK_SIZE_LIMIT {
        return corrupt("a stored size of at most 2^24 bytes", chunk.compressed_size.to_string());
    }
    if !chunk.compressed && chunk.batch.is_none() && chunk.compressed_size != chunk.uncompressed_size {
        return corrupt(
            "equal sizes, for it is not compressed",
            format!("{} and {}", chunk.compressed_size, chunk.uncompressed_size),
        );
    }
    let end = chunk.compressed_offset.checked_add(u64::from(chunk.compressed_size));
    if end.is_none_or(|end| end > blob.compressed_size) {
        return corrupt(
            "stored bytes within the blob's chunk data",
            format!("{} bytes at {}", chunk.compressed_size, chunk.compressed_offset),
        );
    }
    let end = chunk.uncompressed_offset.checked_add(u64::from(chunk.uncompressed_size));
    if end.is_none_or(|end| end > blob.uncompressed_size.next_multiple_of(BLOCK_SIZE)) {
        return corrupt(
            "uncompressed bytes within the uncompressed blob",
            format!("{} bytes at {}", chunk.uncompressed_size, chunk.uncompressed_offset),
        );
    }
    Ok(chunk)
}

/// Blob and index of an entry: what it is found by.
pub(super) fn entry_key(entry: &ChunkEntry) -> (u32, u32) {
    (entry.blob_index.get(), entry.index.get())
}

/// [`decode`] for an entry of this [key](entry_key) in whichever blob it is.
pub(super) fn decode_of(
    (blob, index): (u32, u32),
    entry: &ChunkEntry,
    blobs: &[Blob],
) -> Result<(BlobIndex, ChunkIndex, Chunk), ReadError> {
    let blob = BlobIndex(u8::try_from(blob).unwrap_or(u8::MAX));
    let properties = blobs.get(usize::from(blob.0)).ok_or(ReadError::NoSuchBlob(blob.0))?;
    Ok((blob, ChunkIndex(index), decode(entry, properties, ChunkIndex(index))?))
}
