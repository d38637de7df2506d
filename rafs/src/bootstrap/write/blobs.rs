//! Which blobs a bootstrap names, and their tables.

use zerocopy::FromZeros;

use super::{WriteError, WriteOptions};
use crate::blob::{Blob, BlobIndex, Chunk, ChunkIndex};
use crate::compress::Compressor;
use crate::digest::DigestAlgorithm;
use crate::layout::flags;
use crate::layout::v6::{BlobEntry, DeviceSlot, UNKNOWN_BLOB_ID};
use crate::layout::{BLOCK_SIZE, is_chunk_size};
use crate::tree::ChunkRef;

/// `mapped_blkaddr` is a multiple of this many bytes.
const MAPPING_ALIGNMENT: u64 = 512 * 1024;

/// The blobs with chunks, in order, and what they have in common.
pub(super) struct BlobSet<'a> {
    all: &'a [Blob],
    /// The index on disk of each of `all`.
    indexes: Vec<Option<u8>>,
    /// The blobs with chunks, with whether it is the layer's own.
    pub(super) used: Vec<(&'a Blob, bool)>,
    pub(super) chunk_size: u32,
    compressor: Compressor,
    digester: DigestAlgorithm,
}

impl<'a> BlobSet<'a> {
    pub(super) fn new(all: &'a [Blob], own_first: bool, options: &WriteOptions) -> Result<Self, WriteError> {
        let mut indexes = Vec::with_capacity(all.len());
        let mut used: Vec<(&Blob, bool)> = Vec::new();
        for (index, blob) in all.iter().enumerate() {
            if blob.chunks.is_empty() {
                indexes.push(None);
                continue;
            }
            let own = own_first && index == 0;
            if blob.id.is_none() && !own {
                return Err(WriteError::UnknownBlobId(index));
            }
            if let Some((first, _)) = used.first()
                && first.chunk_size != blob.chunk_size
            {
                let (found, expected) = (blob.chunk_size, first.chunk_size);
                return Err(WriteError::ChunkSizes { blob: index, found, expected });
            }
            // Wraps only past the limit, which is refused below.
            indexes.push(Some(used.len() as u8));
            used.push((blob, own));
        }
        if used.len() > BlobIndex::LIMIT {
            return Err(WriteError::TooManyBlobs { count: used.len(), limit: BlobIndex::LIMIT });
        }
        let first = used.first().map(|(blob, _)| *blob);
        let chunk_size = first.map_or(options.chunk_size, |blob| blob.chunk_size);
        if !is_chunk_size(chunk_size) {
            return Err(WriteError::ChunkSize(chunk_size));
        }
        Ok(Self {
            all,
            indexes,
            chunk_size,
            compressor: first.map_or(options.compressor, |blob| blob.compressor),
            digester: first.map_or(options.digester, |blob| blob.digester),
            used,
        })
    }

    /// The chunk, and its blob's index on disk.
    pub(super) fn chunk(&self, at: ChunkRef) -> Result<(u8, &'a Chunk), WriteError> {
        let (BlobIndex(blob), ChunkIndex(chunk)) = (at.blob, at.chunk);
        let found = self.all.get(usize::from(blob)).and_then(|blob| blob.chunks.get(chunk as usize));
        // What a bootstrap does not describe has no size.
        let found = found.filter(|chunk| chunk.uncompressed_size > 0);
        let index = self.indexes.get(usize::from(blob)).copied().flatten();
        found.and_then(|found| Some((index?, found))).ok_or(WriteError::MissingChunk { blob, chunk })
    }

    pub(super) fn superblock_flags(&self) -> u64 {
        use flags::superblock as sb;
        let compressor = match self.compressor {
            Compressor::None => sb::COMPRESSION_NONE,
            Compressor::Lz4 => sb::COMPRESSION_LZ4,
            Compressor::Zstd { .. } => sb::COMPRESSION_ZSTD,
        };
        let digester = match self.digester {
            DigestAlgorithm::Blake3 => sb::HASH_BLAKE3,
            DigestAlgorithm::Sha256 => sb::HASH_SHA256,
        };
        let inlined =
            self.used.iter().all(|(blob, _)| blob.features & flags::blob::INLINED_CHUNK_DIGEST != 0);
        let inlined = if inlined { sb::INLINED_CHUNK_DIGEST } else { 0 };
        compressor | digester | inlined | sb::EXPLICIT_UID_GID | sb::ENCRYPTION_NONE
    }

    /// The device slots; devices are mapped behind the bootstrap, which ends at `end`.
    pub(super) fn device_slots(&self, end: u64) -> Result<Vec<DeviceSlot>, WriteError> {
        let too_large = || WriteError::TooLarge("the data of all blobs (16 TiB)");
        let mut position = end;
        let slots = self.used.iter().map(|&(blob, own)| {
            let blocks =
                u32::try_from(blob.uncompressed_size.div_ceil(BLOCK_SIZE)).map_err(|_| too_large())?;
            position = position.checked_next_multiple_of(MAPPING_ALIGNMENT).ok_or_else(too_large)?;
            let mut slot = DeviceSlot::new_zeroed();
            slot.blob_id = id(blob, own);
            slot.blocks.set(blocks);
            slot.mapped_blkaddr.set(u32::try_from(position / BLOCK_SIZE).map_err(|_| too_large())?);
            position = position.checked_add(u64::from(blocks) * BLOCK_SIZE).ok_or_else(too_large)?;
            Ok(slot)
        });
        slots.collect()
    }

    /// The blob table.
    pub(super) fn entries(&self) -> Vec<BlobEntry> {
        self.used.iter().enumerate().map(|(index, &(blob, own))| entry(index as u32, blob, own)).collect()
    }
}

fn id(blob: &Blob, own: bool) -> [u8; 64] {
    let mut id = UNKNOWN_BLOB_ID;
    if let Some(digest) = blob.id.filter(|_| !own) {
        hex::encode_to_slice(digest.0, &mut id).expect("64 digits for 32 bytes");
    }
    id
}

fn entry(index: u32, blob: &Blob, own: bool) -> BlobEntry {
    let mut entry = BlobEntry::new_zeroed();
    entry.blob_id = id(blob, own);
    entry.blob_index.set(index);
    entry.chunk_size.set(blob.chunk_size);
    entry.chunk_count.set(blob.chunks.len() as u32);
    entry.compressor.set(blob.compressor.number());
    entry.digester.set(blob.digester.number());
    let inlined = if own { flags::blob::INLINED_FS_META } else { 0 };
    entry.features.set(blob.features & !flags::blob::INLINED_FS_META | inlined);
    entry.compressed_size.set(if blob.stored_size > 0 { blob.stored_size } else { blob.compressed_size });
    entry.uncompressed_size.set(blob.uncompressed_size);
    if let Some(meta) = blob.meta {
        entry.meta_compressor.set(meta.compressor.number());
        entry.meta_offset.set(meta.offset);
        entry.meta_compressed_size.set(meta.compressed_size);
        entry.meta_uncompressed_size.set(meta.uncompressed_size);
    }
    if let Some((digest, size)) = blob.toc {
        entry.toc_digest = digest.0;
        entry.toc_size.set(size);
    }
    entry
}
