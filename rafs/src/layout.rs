//! The on-disk structures of RAFS, apart from the logic that uses them.
//!
//! Every struct is little-endian and byte-aligned, so a slice of foreign bytes can be viewed as one without copying;
//! sizes and offsets are asserted at compile time. Each table gives offset, size, field and meaning, in bytes.

pub mod blob_meta;
pub mod chunk_table;
mod codes;
pub mod flags;
pub mod toc;
pub mod v5;
pub mod v6;

/// Size in bytes of an EROFS block in RAFS v6.
pub const BLOCK_SIZE: u64 = 4096;

/// Smallest chunk size in bytes: the block size of EROFS.
pub const MIN_CHUNK_SIZE: u32 = 4096;

/// Largest chunk size in bytes: what the 24-bit size fields of chunk information hold.
pub const CHUNK_SIZE_LIMIT: u32 = 1 << 24;

/// The most chunks that a blob has: their indexes have 24 bits.
pub const CHUNKS_LIMIT: u32 = 1 << 24;

/// The most bytes that a blob stores: offsets of stored bytes have 40 bits.
pub const STORED_LIMIT_BYTES: u64 = 1 << 40;

/// The most bytes of an uncompressed blob: addresses count blocks in 32 bits.
pub const UNCOMPRESSED_LIMIT_BYTES: u64 = 1 << 44;

/// The longest name of a file in bytes.
pub const NAME_LIMIT_BYTES: usize = 255;

/// The longest path in bytes that a program can say, and the longest target of a symbolic link.
pub const PATH_LIMIT_BYTES: usize = 4095;

/// The longest value of an extended attribute in bytes: its size has 16 bits.
pub const XATTR_VALUE_LIMIT_BYTES: usize = u16::MAX as usize;

/// The most bytes that all extended attributes of an inode take: one more than their pieces of 4 bytes are counted in 16 bits.
pub const XATTRS_LIMIT_BYTES: usize = size_of::<v6::XattrHeader>() + 4 * (u16::MAX as usize - 1);

/// What targets of symbolic links have to be, for messages: not longer than [`PATH_LIMIT_BYTES`].
pub(crate) const LINK_TARGETS: &str = "a symbolic link's target of at most 4,095 bytes without NUL";

/// What [`is_chunk_size`] wants, for messages.
pub(crate) const CHUNK_SIZES: &str = "a chunk size that is a power of two from 4 KiB to 16 MiB";

/// Whether chunks can have this size in bytes.
pub fn is_chunk_size(size: u32) -> bool {
    size.is_power_of_two() && (MIN_CHUNK_SIZE..=CHUNK_SIZE_LIMIT).contains(&size)
}

/// What of a blob's counts is more than the format holds, for messages; `None` if all fit.
pub(crate) fn excess(chunks: u32, stored: u64, uncompressed: u64) -> Option<&'static str> {
    if chunks > CHUNKS_LIMIT {
        return Some("at most 2^24 chunks");
    }
    (stored > STORED_LIMIT_BYTES || uncompressed > UNCOMPRESSED_LIMIT_BYTES)
        .then_some("at most 2^40 stored and 2^44 uncompressed bytes")
}

/// Whether a directory can have an entry of this name: not empty, no `/` and no NUL, not too long. `.` and `..` count.
pub(crate) fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= NAME_LIMIT_BYTES && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// Asserts size and field offsets of an on-disk struct at compile time.
macro_rules! assert_layout {
    ($type:ty, $size:literal, { $($field:ident: $offset:literal),* $(,)? }) => {
        const _: () = assert!(std::mem::size_of::<$type>() == $size);
        const _: () = assert!(std::mem::align_of::<$type>() == 1);
        $(const _: () = assert!(std::mem::offset_of!($type, $field) == $offset);)*
    };
}
pub(crate) use assert_layout;

/// Rounds up to a multiple of [`BLOCK_SIZE`]; `None` when that does not fit in 64 bits.
pub(crate) fn align_to_block(value: u64) -> Option<u64> {
    value.checked_next_multiple_of(BLOCK_SIZE)
}
