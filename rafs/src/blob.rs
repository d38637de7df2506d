//! A blob: the compressed chunks of one layer, with what is needed to find and check each of them.

mod complete;
pub mod decode;
pub mod meta;
pub mod source;
pub mod stream;
mod tar_header;

pub use complete::Contradiction;
pub(crate) use complete::complete;

use crate::compress::Compressor;
use crate::digest::{Digest, DigestAlgorithm};

/// Index of a blob in the image (or layer) that refers to it: 0-based.
///
/// On disk, chunk addresses hold this value plus one in 8 bits, so an image has at most [`BlobIndex::LIMIT`] blobs.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BlobIndex(pub u8);

impl BlobIndex {
    /// The number of blobs that an image may have.
    pub const LIMIT: usize = 254;
}

/// Index of a chunk within its blob: 24 bits on disk.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ChunkIndex(pub u32);

/// One chunk of a blob.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chunk {
    /// Digest of the uncompressed bytes.
    pub digest: Digest,
    /// Where the stored bytes start in the blob.
    pub compressed_offset: u64,
    /// Stored size in bytes (for a batch chunk: of the whole batch).
    pub compressed_size: u32,
    /// Where the chunk lies in the uncompressed blob, and so in cache file and EROFS device: a multiple of 4 KiB.
    pub uncompressed_offset: u64,
    /// Size of the chunk's content in bytes, at least 1.
    pub uncompressed_size: u32,
    /// Whether the stored bytes are compressed; when not, stored and uncompressed size are equal.
    pub compressed: bool,
    /// The chunk is a member of a batch: its bytes are a part of what the batch decompresses to.
    pub batch: Option<BatchMember>,
}

/// Where a chunk lies in the uncompressed bytes of its batch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BatchMember {
    /// Index of the batch context in the blob's chunk-info area.
    pub index: u32,
    /// Offset of the chunk in the decompressed batch.
    pub offset: u32,
}

/// A blob's properties and its chunks, in order of [`ChunkIndex`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Blob {
    /// Digest (SHA-256) of the whole blob stream as the registry stores it, which is the blob's name. In a layer's own
    /// bootstrap, which is part of that stream, it is unknown.
    pub id: Option<Digest>,
    /// Size in bytes of the whole blob stream as the registry stores it, with its tail (0 while unknown).
    pub stored_size: u64,
    /// Size in bytes of the chunk data, the first part of the stream.
    pub compressed_size: u64,
    /// Size in bytes of the uncompressed blob: the end of its last chunk rounded up to 4 KiB.
    pub uncompressed_size: u64,
    /// Chunk size in bytes: a power of two from 4 KiB to 16 MiB.
    pub chunk_size: u32,
    /// How chunks are compressed.
    pub compressor: Compressor,
    /// What chunk digests are made with.
    pub digester: DigestAlgorithm,
    /// The feature bits, as the blob table stores them.
    pub features: u32,
    /// Where the chunk-info array is in the stream, if the blob has one.
    pub meta: Option<MetaLocation>,
    /// Digest (SHA-256) and size in bytes of the table of contents at the end of the stream, if it has one.
    pub toc: Option<(Digest, u32)>,
    /// The chunks. Empty where chunk information was left out of the bootstrap.
    pub chunks: Vec<Chunk>,
}

impl Blob {
    /// How the chunks of a blob are coded, and nothing else: it has none, and neither name nor sizes.
    pub fn coding(chunk_size: u32, compressor: Compressor, digester: DigestAlgorithm) -> Self {
        Self {
            id: None,
            stored_size: 0,
            compressed_size: 0,
            uncompressed_size: 0,
            chunk_size,
            compressor,
            digester,
            features: 0,
            meta: None,
            toc: None,
            chunks: Vec::new(),
        }
    }
}

/// Where the chunk-info array (`blob.meta`) lies in the blob stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MetaLocation {
    /// Offset in bytes in the blob stream.
    pub offset: u64,
    /// Stored size in bytes.
    pub compressed_size: u64,
    /// Uncompressed size in bytes.
    pub uncompressed_size: u64,
    /// How it is compressed.
    pub compressor: Compressor,
}
