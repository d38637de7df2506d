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
