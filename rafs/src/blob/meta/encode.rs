//! Writing the chunk-info array.

use zerocopy::{FromZeros, IntoBytes};

use crate::blob::{Blob, Chunk, MetaLocation};
use crate::compress::Compressor;
use crate::layout::blob_meta::{
    BatchContext, COMPRESSED_OFFSET_LIMIT, ChunkInfoV1, ChunkInfoV2, MAGIC, MetaHeader,
    UNCOMPRESSED_OFFSET_LIMIT, v2_flags,
};
use crate::layout::{BLOCK_SIZE, CHUNK_SIZE_LIMIT, flags};

/// zstd level of the array where the chunks themselves do not say one.
const DEFAULT_LEVEL: i32 = 3;

/// Chunk information that the format cannot hold.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum EncodeError {
    #[error("chunk {index} is at stored offset {offset}; expected less than 2^40 bytes")]
    StoredOffset { index: usize, offset: u64 },
    #[error("chunk {index} is at uncompressed offset {offset}; expected a multiple of 4 KiB below 2^44")]
    UncompressedOffset { index: usize, offset: u64 },
    #[error(
        "chunk {index} is stored as {stored} bytes for {uncompressed}; expected 1 to 2^24, and equal or fewer"
    )]
    Size { index: usize, stored: u32, uncompressed: u32 },
    #[error(
        "chunk {index} is in batch {batch}; expected batches to be numbered from 0 in order of their chunks"
    )]
    Batch { index: usize, batch: u32 },
    #[error("the chunk-info array cannot be compressed")]
    Compress(#[from] std::io::Error),
}

/// The chunk-info array of a blob with its contexts, and its header.
#[derive(Debug)]
pub struct Encoded {
    /// The array and its contexts, uncompressed.
    pub array: Vec<u8>,
    /// The array as stored in the stream.
    pub stored: Vec<u8>,
    /// The header, which follows.
    pub header: MetaHeader,
    /// Where it goes.
    pub location: MetaLocation,
}

impl Encoded {
    /// The content of a `blob.meta` file next to a bootstrap: the uncompressed array, padded to 4 KiB, and the header.
    pub fn to_file(&self) -> Vec<u8> {
        let mut bytes = self.array.clone();
        bytes.resize(bytes.len().next_multiple_of(BLOCK_SIZE as usize), 0);
        bytes.extend_from_slice(self.header.as_bytes());
        bytes
    }
}

/// Encodes the chunk information of `blob`, to be stored at `offset` bytes in the stream. The blob's features say
/// which version.
///
/// # Errors
///
/// When a chunk does not fit the format.
pub fn encode(blob: &Blob, offset: u64) -> Result<Encoded, EncodeError> {
    let v2 = blob.features & flags::blob::CHUNK_INFO_V2 != 0;
    let mut array = Vec::with_capacity(blob.chunks.len() * if v2 { 24 } else { 16 });
    let mut batches: Vec<BatchContext> = Vec::new();
    for (index, chunk) in blob.chunks.iter().enumerate() {
        check(index, chunk, v2)?;
        if v2 {
            array.extend_from_slice(version_2(index, chunk, &mut batches)?.as_bytes());
        } else {
            let (stored, uncompressed) = (chunk.compressed_size, chunk.uncompressed_size);
            let info =
                ChunkInfoV1::new(chunk.compressed_offset, stored, chunk.uncompressed_offset, uncompressed);
            array.extend_from_slice(info.as_bytes());
        }
    }

    // Contexts follow the array, and are known when all of it is; the header says where both are, compressed or not, so it is
    // complete last.
    let mut header = MetaHeader::new_zeroed();
    header.magic.set(MAGIC);
    header.magic2.set(MAGIC);
    header.features.set(blob.features & !flags::blob::INLINED_FS_META);
    header.entries.set(blob.chunks.len() as u32);
    header.offset.set(offset);
    if !batches.is_empty() {
        header.context_offset.set(array.len() as u64);
        header.context_size.set(batches.as_bytes().len() as u64);
        header.context_count.set(batches.len() as u32);
        array.extend_from_slice(batches.as_bytes());
    }

    let (compressor, stored) = compress(&array, blob.compressor)?;
    header.compressor.set(compressor.number());
    header.compressed_size.set(stored.len() as u64);
    header.uncompressed_size.set(array.len() as u64);
    let location = MetaLocation {
        offset,
        compressed_size: stored.len() as u64,
        uncompressed_size: array.len() as u64,
        compressor,
    };
    Ok(Encoded { array, stored, header, location })
}

/// Compresses with zstd, unless the blob is to be stored as it is: upstream reads LZ4 here too, but not from a table of
/// contents.
fn compress(array: &[u8], compressor: Compressor) -> Result<(Compressor, Vec<u8>), std::io::Error> {
    let level = match compressor {
        Compressor::None => return Ok((Compressor::None, array.to_vec())),
        Compressor::Zstd { level } => level,
        Compressor::Lz4 => DEFAULT_LEVEL,
    };
    let compressed = zstd::bulk::compress(array, level)?;
    if compressed.len() < array.len() {
        Ok((Compressor::Zstd { level }, compressed))
    } else {
        Ok((Compressor::None, array.to_vec()))
    }
}

fn check(index: usize, chunk: &Chunk, v2: bool) -> Result<(), EncodeError> {
    let (offset, stored, uncompressed) =
        (chunk.compressed_offset, chunk.compressed_size, chunk.uncompressed_size);
    if offset > COMPRESSED_OFFSET_LIMIT {
        return Err(EncodeError::StoredOffset { index, offset });
    }
    let offset = chunk.uncompressed_offset;
    if offset > UNCOMPRESSED_OFFSET_LIMIT || !offset.is_multiple_of(BLOCK_SIZE) {
        return Err(EncodeError::UncompressedOffset { index, offset });
    }
    // Version 1 tells compressed chunks by their size; version 2 stores the size in 24 bits, not minus one.
    let sizes = 1..=CHUNK_SIZE_LIMIT;
    let ambiguous = chunk.batch.is_none() && chunk.compressed == (stored == uncompressed);
    if !sizes.contains(&stored)
        || !sizes.contains(&uncompressed)
        || ambiguous
        || (v2 && stored == CHUNK_SIZE_LIMIT)
    {
        return Err(EncodeError::Size { index, stored, uncompressed });
    }
    Ok(())
}

fn version_2(
    index: usize,
    chunk: &Chunk,
    batches: &mut Vec<BatchContext>,
) -> Result<ChunkInfoV2, EncodeError> {
    let uncompressed = (chunk.uncompressed_offset, chunk.uncompressed_size);
    let Some(member) = chunk.batch else {
        let flags = if chunk.compressed { v2_flags::COMPRESSED } else { 0 };
        return Ok(ChunkInfoV2::new(
            (chunk.compressed_offset, chunk.compressed_size),
            uncompressed,
            flags,
            0,
        ));
    };
    let bad = EncodeError::Batch { index, batch: member.index };
    let position = member.index as usize;
    if position > batches.len() {
        return Err(bad);
    }
    if position == batches.len() {
        let mut context = BatchContext::new_zeroed();
        context.compressed_size.set(chunk.compressed_size);
        batches.push(context);
    }
    let end = member.offset.checked_add(chunk.uncompressed_size).ok_or(bad)?;
    let context = &mut batches[position];
    context.uncompressed_size.set(context.uncompressed_size.get().max(end));
    let data = u64::from(member.offset) | u64::from(member.index) << 32;
    let flags = v2_flags::COMPRESSED | v2_flags::BATCH;
    // Of a member the entry has no stored size: the batch has one, in its context, and two that differ could not be told
    // right from wrong.
    Ok(ChunkInfoV2::new((chunk.compressed_offset, 0), uncompressed, flags, data))
}
