//! Reading the chunk-info array.

use zerocopy::FromBytes;

use crate::blob::decode::{DecompressError, decompress};
use crate::blob::{BatchMember, Blob, Chunk, ChunkIndex, MetaLocation};
use crate::digest::Digest;
use crate::layout::blob_meta::{BatchContext, ChunkInfoV1, ChunkInfoV2, MAGIC, MetaHeader, v2_flags};
use crate::layout::flags::blob as features;
use crate::layout::{BLOCK_SIZE, CHUNK_SIZE_LIMIT, CHUNKS_LIMIT, align_to_block};

const HEADER_SIZE: usize = size_of::<MetaHeader>();

/// The largest array that is read, in bytes: 2^24 chunks of version 2, each in a batch of its own.
const ARRAY_SIZE_LIMIT: u64 =
    CHUNKS_LIMIT as u64 * (size_of::<ChunkInfoV2>() + size_of::<BatchContext>()) as u64;

/// Why chunk information cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum MetaError {
    #[error("the bootstrap does not say where the blob's chunk information is")]
    NoLocation,
    #[error("chunk information has {found} bytes; expected {expected}")]
    Size { found: u64, expected: u64 },
    #[error("the chunk-info header is wrong: expected {0}")]
    Header(&'static str),
    #[error("the chunk-info array cannot be decompressed")]
    Decompress(#[from] DecompressError),
    #[error("chunk digests have {found} bytes; expected {expected}")]
    Digests { found: u64, expected: u64 },
    #[error("the blob has no chunk {index}: it has {count}")]
    NoSuchChunk { index: u32, count: u32 },
    #[error("chunk {index} is impossible: expected {expected}")]
    Chunk { index: u32, expected: &'static str },
    #[error("chunk {index} is not supported: it is {what}")]
    Unsupported { index: u32, what: &'static str },
}

/// The chunk information of a blob: `blob.meta`, and `blob.digest` if given.
#[derive(Clone, Debug)]
pub struct BlobMeta {
    array: Vec<u8>,
    count: u32,
    v2: bool,
    /// Where the batch contexts are in the array.
    contexts: std::ops::Range<usize>,
    digests: Option<Vec<u8>>,
    compressed_size: u64,
    uncompressed_size: u64,
    chunk_size: u32,
}

/// What chunk information says of a chunk: a [`Chunk`] whose digest may not be known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ChunkInfo {
    /// Digest of the uncompressed bytes, where `blob.digest` was given.
    pub digest: Option<Digest>,
    chunk: Chunk,
}

impl ChunkInfo {
    /// The chunk, with this digest.
    pub fn with_digest(self, digest: Digest) -> Chunk {
        Chunk { digest, ..self.chunk }
    }
}

impl BlobMeta {
    /// The bytes that [`from_stored`](Self::from_stored) wants: from this offset in the stream, so many.
    ///
    /// # Errors
    ///
    /// When the bootstrap does not say.
    pub fn stored_range(blob: &Blob) -> Result<std::ops::Range<u64>, MetaError> {
        let meta = location(blob)?;
        let end = meta.offset.checked_add(meta.compressed_size + HEADER_SIZE as u64);
        Ok(meta.offset..end.ok_or(MetaError::NoLocation)?)
    }

    /// From a blob stream: the stored array and the header.
    ///
    /// # Errors
    ///
    /// When the bytes do not fit the blob.
    pub fn from_stored(blob: &Blob, bytes: &[u8]) -> Result<Self, MetaError> {
        let (array, header) = Self::unpack(blob, bytes)?;
        Self::from_parts(blob, array, &header)
    }

    /// The uncompressed array and the header out of what [`from_stored`](Self::from_stored) wants.
    pub(crate) fn unpack(blob: &Blob, bytes: &[u8]) -> Result<(Vec<u8>, Vec<u8>), MetaError> {
        let meta = location(blob)?;
        let expected = meta.compressed_size + HEADER_SIZE as u64;
        if bytes.len() as u64 != expected {
            return Err(MetaError::Size { found: bytes.len() as u64, expected });
        }
        let (stored, header) = bytes.split_at(bytes.len() - HEADER_SIZE);
        Ok((decompress(meta.compressor, stored, meta.uncompressed_size)?, header.to_vec()))
    }

    /// The number of chunks that a header names.
    pub(crate) fn entries(header: &[u8]) -> Result<u64, MetaError> {
        let header = MetaHeader::ref_from_bytes(header).map_err(|_| MetaError::Header("4,096 bytes"))?;
        Ok(u64::from(header.entries.get()))
    }

    /// From the uncompressed array and the header.
    pub(crate) fn from_parts(blob: &Blob, array: Vec<u8>, header: &[u8]) -> Result<Self, MetaError> {
        let meta = location(blob)?;
        let (found, expected) = (array.len() as u64, meta.uncompressed_size);
        if found != expected {
            return Err(MetaError::Size { found, expected });
        }
        Self::new(blob, meta, array, header)
    }

    /// From a `blob.meta` file next to a bootstrap: the array, padded to 4 KiB, and the header.
    ///
    /// # Errors
    ///
    /// When the bytes do not fit the blob.
    pub fn from_file(blob: &Blob, mut bytes: Vec<u8>) -> Result<Self, MetaError> {
        let meta = location(blob)?;
        let padded = align_to_block(meta.uncompressed_size).ok_or(MetaError::NoLocation)?;
        let expected = padded + HEADER_SIZE as u64;
        if bytes.len() as u64 != expected {
            return Err(MetaError::Size { found: bytes.len() as u64, expected });
        }
        let header = bytes.split_off(bytes.len() - HEADER_SIZE);
        // No more than there is, for it was padded to that.
        bytes.truncate(meta.uncompressed_size as usize);
        Self::new(blob, meta, bytes, &header)
    }

    fn new(blob: &Blob, meta: MetaLocation, array: Vec<u8>, header: &[u8]) -> Result<Self, MetaError> {
        let header = MetaHeader::ref_from_bytes(header).map_err(|_| MetaError::Header("4,096 bytes"))?;
        if header.magic.get() != MAGIC || header.magic2.get() != MAGIC {
            return Err(MetaError::Header("its magic number at both ends"));
        }
        // The array was found by the blob table. A header that says otherwise is that of another blob, or of a blob that was
        // written again: its entries would be read at wrong places.
        let sizes = (header.compressed_size.get(), header.uncompressed_size.get());
        if header.offset.get() != meta.offset || sizes != (meta.compressed_size, meta.uncompressed_size) {
            return Err(MetaError::Header("the offset and sizes of the bootstrap's blob table"));
        }
        if header.features.get() & features::ENCRYPTED != 0 {
            return Err(MetaError::Header("no encryption (AES-128-XTS), which is not supported"));
        }
        let version_bits = features::CHUNK_INFO_V2 | features::BATCH | features::ZRAN;
        if (header.features.get() ^ blob.features) & version_bits != 0 {
            return Err(MetaError::Header("the features of the bootstrap's blob table"));
        }
        let v2 = blob.features & features::CHUNK_INFO_V2 != 0;
        // What is allocated for chunks later follows the count, so it may claim no more than there are bytes.
        let count = header.entries.get();
        let entries =
            u64::from(count) * if v2 { size_of::<ChunkInfoV2>() } else { size_of::<ChunkInfoV1>() } as u64;
        if count > CHUNKS_LIMIT || entries > array.len() as u64 {
            return Err(MetaError::Header("as many entries as the array has"));
        }
        let contexts = if blob.features & features::BATCH != 0 {
            // Contexts that lie over the entries would give the same bytes two meanings.
            let start = header.context_offset.get();
            let size = u64::from(header.context_count.get()) * size_of::<BatchContext>() as u64;
            let end = start.checked_add(size).filter(|end| *end <= array.len() as u64 && start >= entries);
            let end = end.ok_or(MetaError::Header("contexts behind the entries, within the array"))?;
            start as usize..end as usize
        } else {
            0..0
        };
        Ok(Self {
            array,
            count,
            v2,
            contexts,
            digests: None,
            compressed_size: blob.compressed_size,
            uncompressed_size: blob.uncompressed_size.next_multiple_of(BLOCK_SIZE),
            chunk_size: blob.chunk_size,
        })
    }

    /// Adds `blob.digest`: 32 bytes a chunk.
    ///
    /// # Errors
    ///
    /// When they are too few or too many.
    pub fn set_digests(&mut self, digests: Vec<u8>) -> Result<(), MetaError> {
        let (found, expected) = (digests.len() as u64, u64::from(self.count) * 32);
        if found != expected {
            return Err(MetaError::Digests { found, expected });
        }
        self.digests = Some(digests);
        Ok(())
    }

    /// The number of chunks.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// A chunk.
    ///
    /// # Errors
    ///
    /// When there is none of this index, or it is impossible in this blob.
    pub fn chunk(&self, index: ChunkIndex) -> Result<ChunkInfo, MetaError> {
        let index = index.0;
        if index >= self.count {
            return Err(MetaError::NoSuchChunk { index, count: self.count });
        }
        let position = index as usize;
        let chunk = if self.v2 { self.version_2(position)? } else { self.version_1(position) };
        let bad = |expected| Err(MetaError::Chunk { index, expected });
        if chunk.uncompressed_size > self.chunk_size {
            return bad("at most the image's chunk size");
        }
        if chunk.compressed_size == 0 || chunk.compressed_size > CHUNK_SIZE_LIMIT {
            return bad("a stored size from 1 to 2^24");
        }
        if !chunk.compressed && chunk.compressed_size != chunk.uncompressed_size {
            return bad("equal sizes, for it is not compressed");
        }
        if chunk.compressed_offset + u64::from(chunk.compressed_size) > self.compressed_size {
            return bad("stored bytes within the blob's chunk data");
        }
        if chunk.uncompressed_offset + u64::from(chunk.uncompressed_size) > self.uncompressed_size {
            return bad("uncompressed bytes within the uncompressed blob");
        }
        let digest = self.digests.as_ref().and_then(|digests| digests.as_chunks::<32>().0.get(position));
        Ok(ChunkInfo { digest: digest.map(|digest| Digest(*digest)), chunk })
    }

    fn version_1(&self, position: usize) -> Chunk {
        let size = size_of::<ChunkInfoV1>();
        let info =
            ChunkInfoV1::ref_from_bytes(&self.array[position * size..][..size]).expect("the size is right");
        Chunk {
            digest: Digest([0; 32]),
            compressed_offset: info.compressed_offset(),
            compressed_size: info.compressed_size(),
            uncompressed_offset: info.uncompressed_offset(),
            uncompressed_size: info.uncompressed_size(),
            compressed: info.compressed_size() != info.uncompressed_size(),
            batch: None,
        }
    }

    fn version_2(&self, position: usize) -> Result<Chunk, MetaError> {
        let size = size_of::<ChunkInfoV2>();
        let info =
            ChunkInfoV2::ref_from_bytes(&self.array[position * size..][..size]).expect("the size is right");
        let (flags, index) = (info.flags(), position as u32);
        let what = if flags & v2_flags::ENCRYPTED != 0 {
            "encrypted (AES-128-XTS)"
        } else {
            "part of a gzip stream"
        };
        if flags & (v2_flags::ENCRYPTED | v2_flags::ZRAN) != 0 {
            return Err(MetaError::Unsupported { index, what });
        }
        let mut chunk = Chunk {
            digest: Digest([0; 32]),
            compressed_offset: info.compressed_offset(),
            compressed_size: info.compressed_size(),
            uncompressed_offset: info.uncompressed_offset(),
            uncompressed_size: info.uncompressed_size(),
            compressed: flags & v2_flags::COMPRESSED != 0,
            batch: None,
        };
        if flags & v2_flags::BATCH != 0 {
            let data = info.data.get();
            let member = BatchMember { index: (data >> 32) as u32, offset: data as u32 };
            let context = self.batch(member.index);
            let context = context.ok_or(MetaError::Chunk { index, expected: "a batch that exists" })?;
            let end = u64::from(member.offset) + u64::from(chunk.uncompressed_size);
            if end > u64::from(context.uncompressed_size.get()) {
                return Err(MetaError::Chunk { index, expected: "bytes within its batch" });
            }
            chunk.compressed_size = context.compressed_size.get();
            chunk.compressed = true;
            chunk.batch = Some(member);
        }
        Ok(chunk)
    }

    fn batch(&self, index: u32) -> Option<&BatchContext> {
        let contexts = <[BatchContext]>::ref_from_bytes(&self.array[self.contexts.clone()]).ok()?;
        contexts.get(index as usize)
    }
}

fn location(blob: &Blob) -> Result<MetaLocation, MetaError> {
    let meta = blob.meta.ok_or(MetaError::NoLocation)?;
    if meta.uncompressed_size > ARRAY_SIZE_LIMIT || meta.compressed_size > ARRAY_SIZE_LIMIT {
        return Err(MetaError::NoLocation);
    }
    Ok(meta)
}
