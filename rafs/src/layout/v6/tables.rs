//! Device slots and blob table.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::assert_layout;

/// A device slot, 128 bytes: one a blob, in the blob table's order.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 64 | `blob_id` | hexadecimal digits (EROFS: tag) |
/// | 64 | 4 | `blocks` | blocks of the uncompressed blob, not 0 |
/// | 68 | 4 | `mapped_blkaddr` | block at which it appears when all devices are one |
/// | 72 | 56 | `reserved` | 0 |
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the table above")]
pub struct DeviceSlot {
    pub blob_id: [u8; 64],
    pub blocks: U32,
    pub mapped_blkaddr: U32,
    pub reserved: [u8; 56],
}
assert_layout!(DeviceSlot, 128, { blob_id: 0, blocks: 64, mapped_blkaddr: 68, reserved: 72 });

/// An entry of the blob table, 256 bytes.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 64 | `blob_id` | hexadecimal digits; `x` × 64 for the blob that this bootstrap is a part of |
/// | 64 | 4 | `blob_index` | the entry's own index |
/// | 68 | 4 | `chunk_size` | bytes |
/// | 72 | 4 | `chunk_count` | number of chunks |
/// | 76 | 4 | `compressor` | [`super::super::flags::compressor`] |
/// | 80 | 4 | `digester` | [`super::super::flags::digest`] |
/// | 84 | 4 | `features` | [`super::super::flags::blob`] |
/// | 88 | 8 | `compressed_size` | of the stream, bytes |
/// | 96 | 8 | `uncompressed_size` | of the uncompressed blob, bytes |
/// | 104 | 4 | `toc_size` | of the table of contents with its tar header, bytes |
/// | 108 | 4 | `meta_compressor` | of `blob.meta` |
/// | 112 | 8 | `meta_offset` | of `blob.meta` in the stream, bytes |
/// | 120 | 8 | `meta_compressed_size` | bytes |
/// | 128 | 8 | `meta_uncompressed_size` | bytes |
/// | 136 | 32 | `toc_digest` | SHA-256 of the table of contents with its tar header |
/// | 168 | 32 | `meta_digest` | of the separate information blob; encryption key |
/// | 200 | 8 | `meta_size` | of the separate information blob, bytes; encryption IV |
/// | 208 | 8 | `cipher_iv` | encryption IV |
/// | 216 | 4 | `cipher` | 0: not encrypted |
/// | 220 | 36 | `reserved` | 0 |
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the table above")]
pub struct BlobEntry {
    pub blob_id: [u8; 64],
    pub blob_index: U32,
    pub chunk_size: U32,
    pub chunk_count: U32,
    pub compressor: U32,
    pub digester: U32,
    pub features: U32,
    pub compressed_size: U64,
    pub uncompressed_size: U64,
    pub toc_size: U32,
    pub meta_compressor: U32,
    pub meta_offset: U64,
    pub meta_compressed_size: U64,
    pub meta_uncompressed_size: U64,
    pub toc_digest: [u8; 32],
    pub meta_digest: [u8; 32],
    pub meta_size: U64,
    pub cipher_iv: [u8; 8],
    pub cipher: U32,
    pub reserved: [u8; 36],
}
assert_layout!(BlobEntry, 256, {
    blob_id: 0, blob_index: 64, chunk_size: 68, chunk_count: 72, compressor: 76, digester: 80, features: 84,
    compressed_size: 88, uncompressed_size: 96, toc_size: 104, meta_compressor: 108, meta_offset: 112,
    meta_compressed_size: 120, meta_uncompressed_size: 128, toc_digest: 136, meta_digest: 168, meta_size: 200,
    cipher_iv: 208, cipher: 216, reserved: 220,
});

/// The blob id that a layer's own bootstrap has for its blob, since that bootstrap is a part of the blob.
pub const UNKNOWN_BLOB_ID: [u8; 64] = [b'x'; 64];
