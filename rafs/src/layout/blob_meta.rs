//! `blob.meta`: the chunk-info array of a blob stream, its batch contexts and the header that follows it.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assert_layout;

/// Magic number at both ends of the header.
pub const MAGIC: u32 = 0xb10b_b10b;
/// Stored offsets of version 1 and 2 have 40 bits.
pub const COMPRESSED_OFFSET_LIMIT: u64 = super::STORED_LIMIT_BYTES - 1;
/// Uncompressed offsets are stored as 32 bits of 4 KiB blocks.
pub const UNCOMPRESSED_OFFSET_LIMIT: u64 = super::UNCOMPRESSED_LIMIT_BYTES - super::BLOCK_SIZE;

/// The header behind the chunk-info array, 4,096 bytes. It is never compressed.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 4 | `magic` | [`MAGIC`] |
/// | 4 | 4 | `features` | [`super::flags::blob`] |
/// | 8 | 4 | `compressor` | of the array, [`super::flags::compressor`] |
/// | 12 | 4 | `entries` | number of chunks |
/// | 16 | 8 | `offset` | of the array, bytes into the stream |
/// | 24 | 8 | `compressed_size` | of the array with its contexts, bytes |
/// | 32 | 8 | `uncompressed_size` | of the array with its contexts, bytes |
/// | 40 | 8 | `context_offset` | of the batch or zran contexts in the uncompressed area, bytes |
/// | 48 | 8 | `context_size` | of the contexts, bytes |
/// | 56 | 4 | `context_count` | number of contexts |
/// | 60 | 4,032 | `reserved` | 0 |
/// | 4,092 | 4 | `magic2` | [`MAGIC`] |
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MetaHeader {
    /// [`MAGIC`].
    pub magic: U32,
    /// [`super::flags::blob`].
    pub features: U32,
    /// Of the array.
    pub compressor: U32,
    /// Number of chunks.
    pub entries: U32,
    /// Of the array, bytes into the stream.
    pub offset: U64,
    /// Of the array with its contexts, bytes.
    pub compressed_size: U64,
    /// Of the array with its contexts, bytes.
    pub uncompressed_size: U64,
    /// Of the contexts in the uncompressed area, bytes.
    pub context_offset: U64,
    /// Of the contexts, bytes.
    pub context_size: U64,
    /// Number of contexts.
    pub context_count: U32,
    /// 0.
    pub reserved: [u8; 4032],
    /// [`MAGIC`].
    pub magic2: U32,
}
assert_layout!(MetaHeader, 4096, {
    magic: 0, features: 4, compressor: 8, entries: 12, offset: 16, compressed_size: 24, uncompressed_size: 32,
    context_offset: 40, context_size: 48, context_count: 56, reserved: 60, magic2: 4092,
});

/// Chunk info version 1, 16 bytes, for blobs without batch, zran and encryption. Sizes are stored minus one. Equal
/// sizes mean that the chunk is stored uncompressed.
///
/// | offset | size | field | bits |
/// |---|---|---|---|
/// | 0 | 8 | `uncompressed` | 0–7 reserved, 8–11 size bits 20–23, 12–43 offset bits 12–43, 44–63 size bits 0–19 |
/// | 8 | 8 | `compressed` | 0–39 offset, 40–43 size bits 20–23, 44–63 size bits 0–19 |
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkInfoV1 {
    /// Where the chunk is in the uncompressed blob.
    pub uncompressed: U64,
    /// Where the chunk is in the stream.
    pub compressed: U64,
}
assert_layout!(ChunkInfoV1, 16, { uncompressed: 0, compressed: 8 });

impl ChunkInfoV1 {
    /// Packs offsets and sizes, which the caller has checked against this module's limits.
    pub fn new(
        compressed_offset: u64,
        compressed_size: u32,
        uncompressed_offset: u64,
        uncompressed_size: u32,
    ) -> Self {
        let (c, u) = (u64::from(compressed_size - 1), u64::from(uncompressed_size - 1));
        Self {
            uncompressed: U64::new(uncompressed_offset | (u & 0xf_ffff) << 44 | (u >> 20) << 8),
            compressed: U64::new(compressed_offset | (c & 0xf_ffff) << 44 | (c >> 20) << 40),
        }
    }

    /// Bytes into the stream.
    pub fn compressed_offset(&self) -> u64 {
        self.compressed.get() & COMPRESSED_OFFSET_LIMIT
    }

    /// Stored bytes.
    pub fn compressed_size(&self) -> u32 {
        let value = self.compressed.get();
        ((value >> 44) | ((value >> 40) & 0xf) << 20) as u32 + 1
    }

    /// Bytes into the uncompressed blob.
    pub fn uncompressed_offset(&self) -> u64 {
        self.uncompressed.get() & UNCOMPRESSED_OFFSET_LIMIT
    }

    /// Bytes of content.
    pub fn uncompressed_size(&self) -> u32 {
        let value = self.uncompressed.get();
        ((value >> 44) | ((value >> 8) & 0xf) << 20) as u32 + 1
    }
}

/// Flags of [`ChunkInfoV2`], as stored in the top byte of its first word.
pub mod v2_flags {
    /// The stored bytes are compressed.
    pub const COMPRESSED: u8 = 0x1;
    /// The chunk is a part of a gzip stream.
    pub const ZRAN: u8 = 0x2;
    /// The chunk is a member of a batch.
    pub const BATCH: u8 = 0x4;
    /// The stored bytes are encrypted.
    pub const ENCRYPTED: u8 = 0x8;
    /// `data` holds a CRC-32.
    pub const HAS_CRC32: u8 = 0x10;
}

/// Chunk info version 2, 24 bytes. The uncompressed size is stored minus one, the compressed size is not.
///
/// | offset | size | field | bits |
/// |---|---|---|---|
/// | 0 | 8 | `uncompressed` | 0–31 offset in 4 KiB blocks, 32–55 size, 56–63 [`v2_flags`] |
/// | 8 | 8 | `compressed` | 0–39 offset, 40–63 size (0 for a batch member) |
/// | 16 | 8 | `data` | batch or zran: 0–31 offset in the decompressed context, 32–63 context index; else CRC-32 or 0 |
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkInfoV2 {
    /// Where the chunk is in the uncompressed blob, and flags.
    pub uncompressed: U64,
    /// Where the chunk is in the stream.
    pub compressed: U64,
    /// Context, or CRC-32.
    pub data: U64,
}
assert_layout!(ChunkInfoV2, 24, { uncompressed: 0, compressed: 8, data: 16 });

impl ChunkInfoV2 {
    /// Packs offsets, sizes and flags, which the caller has checked against this module's limits.
    pub fn new(
        (compressed_offset, compressed_size): (u64, u32),
        (uncompressed_offset, uncompressed_size): (u64, u32),
        flags: u8,
        data: u64,
    ) -> Self {
        let size = u64::from(uncompressed_size - 1);
        Self {
            uncompressed: U64::new(uncompressed_offset >> 12 | size << 32 | u64::from(flags) << 56),
            compressed: U64::new(compressed_offset | u64::from(compressed_size) << 40),
            data: U64::new(data),
        }
    }

    /// Bytes into the stream.
    pub fn compressed_offset(&self) -> u64 {
        self.compressed.get() & COMPRESSED_OFFSET_LIMIT
    }

    /// Stored bytes.
    pub fn compressed_size(&self) -> u32 {
        (self.compressed.get() >> 40) as u32
    }

    /// Bytes into the uncompressed blob.
    pub fn uncompressed_offset(&self) -> u64 {
        (self.uncompressed.get() & 0xffff_ffff) << 12
    }

    /// Bytes of content.
    pub fn uncompressed_size(&self) -> u32 {
        ((self.uncompressed.get() >> 32) as u32 & 0xff_ffff) + 1
    }

    /// [`v2_flags`].
    pub fn flags(&self) -> u8 {
        (self.uncompressed.get() >> 56) as u8
    }
}

/// What the members of one batch share, 40 bytes.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 4 | `compressed_size` | stored bytes of the batch |
/// | 4 | 4 | `uncompressed_size` | bytes of the batch, its members without gaps |
/// | 8 | 32 | `reserved` | 0 |
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BatchContext {
    /// Stored bytes of the batch.
    pub compressed_size: U32,
    /// Bytes of the batch.
    pub uncompressed_size: U32,
    /// 0.
    pub reserved: [u8; 32],
}
assert_layout!(BatchContext, 40, { compressed_size: 0, uncompressed_size: 4, reserved: 8 });
