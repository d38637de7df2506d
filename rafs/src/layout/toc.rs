//! The table of contents at the end of a blob stream.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assert_layout;

/// Name of the chunk data.
pub const BLOB: &str = "image.blob";
/// Name of the chunk-info array.
pub const META: &str = "blob.meta";
/// Name of the chunk-info header, which shares its tar header with [`META`].
pub const META_HEADER: &str = "blob.meta.header";
/// Name of the chunk digests.
pub const DIGESTS: &str = "blob.digest";
/// Name of the layer's own bootstrap.
pub const BOOTSTRAP: &str = "image.boot";
/// Name of the table of contents itself, in its tar header.
pub const TOC: &str = "rafs.blob.toc";

/// The part is stored as it is.
pub const FLAG_NONE: u32 = 1;
/// The part is compressed with zstd.
pub const FLAG_ZSTD: u32 = 2;
/// The part is compressed with LZ4, block format. Upstream writes it but cannot read it.
pub const FLAG_LZ4_BLOCK: u32 = 4;

/// Readers look only at this many bytes at the end of the stream, table and tar header together.
pub const SIZE_LIMIT: usize = 4096;

/// Size in bytes of a tar header.
pub const TAR_HEADER_SIZE: usize = 512;

/// An entry of the table of contents, 128 bytes.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 4 | `flags` | compressor: [`FLAG_NONE`], [`FLAG_ZSTD`] or [`FLAG_LZ4_BLOCK`] |
/// | 4 | 4 | `reserved1` | 0 |
/// | 8 | 16 | `name` | padded with NUL |
/// | 24 | 32 | `uncompressed_digest` | SHA-256 of the uncompressed part |
/// | 56 | 8 | `compressed_offset` | bytes into the stream |
/// | 64 | 8 | `compressed_size` | stored bytes |
/// | 72 | 8 | `uncompressed_size` | bytes |
/// | 80 | 48 | `reserved2` | 0 |
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TocEntry {
    /// Compressor.
    pub flags: U32,
    /// 0.
    pub reserved1: U32,
    /// Name, padded with NUL.
    pub name: [u8; 16],
    /// SHA-256 of the uncompressed part.
    pub uncompressed_digest: [u8; 32],
    /// Bytes into the stream.
    pub compressed_offset: U64,
    /// Stored bytes.
    pub compressed_size: U64,
    /// Bytes when uncompressed.
    pub uncompressed_size: U64,
    /// 0.
    pub reserved2: [u8; 48],
}
assert_layout!(TocEntry, 128, {
    flags: 0, reserved1: 4, name: 8, uncompressed_digest: 24, compressed_offset: 56, compressed_size: 64,
    uncompressed_size: 72, reserved2: 80,
});
