//! The chunk table: what a bootstrap says about each chunk. RAFS v5 has the same entries behind each inode.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assert_layout;

/// An entry of the chunk table (`RafsV5ChunkInfo` upstream), 80 bytes.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 32 | `digest` | digest of the uncompressed bytes |
/// | 32 | 4 | `blob_index` | index in the blob table, 0-based |
/// | 36 | 4 | `flags` | [`super::flags::chunk`] |
/// | 40 | 4 | `compressed_size` | stored bytes; 0 for a batch member |
/// | 44 | 4 | `uncompressed_size` | bytes of content |
/// | 48 | 8 | `compressed_offset` | bytes into the blob stream |
/// | 56 | 8 | `uncompressed_offset` | bytes into the uncompressed blob |
/// | 64 | 8 | `file_offset` | bytes into a file that has this chunk |
/// | 72 | 4 | `index` | chunk index in its blob |
/// | 76 | 4 | `crc32` | CRC-32 of the content, or 0 |
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkEntry {
    /// Digest of the uncompressed bytes.
    pub digest: [u8; 32],
    /// Index in the blob table, 0-based.
    pub blob_index: U32,
    /// [`super::flags::chunk`].
    pub flags: U32,
    /// Stored bytes.
    pub compressed_size: U32,
    /// Bytes of content.
    pub uncompressed_size: U32,
    /// Bytes into the blob stream.
    pub compressed_offset: U64,
    /// Bytes into the uncompressed blob.
    pub uncompressed_offset: U64,
    /// Bytes into a file that has this chunk.
    pub file_offset: U64,
    /// Chunk index in its blob.
    pub index: U32,
    /// CRC-32 of the content, or 0.
    pub crc32: U32,
}
assert_layout!(ChunkEntry, 80, {
    digest: 0, blob_index: 32, flags: 36, compressed_size: 40, uncompressed_size: 44, compressed_offset: 48,
    uncompressed_offset: 56, file_offset: 64, index: 72, crc32: 76,
});
