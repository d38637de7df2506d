//! RAFS v6: an EROFS image with extensions.
//!
//! File order: 1 KiB of zeros, superblock, extension superblock, device slots; blob table; prefetch table; inodes with
//! their extended attributes, chunk addresses and directory blocks; chunk table.

mod inode;
mod tables;

pub use inode::*;
pub use tables::*;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assert_layout;

/// Where the superblock is, in bytes.
pub const SUPERBLOCK_OFFSET: u64 = 1024;
/// Where the extension superblock is, in bytes.
pub const EXTENSION_OFFSET: u64 = SUPERBLOCK_OFFSET + 128;
/// Where the device slots are, in bytes.
pub const DEVICE_TABLE_OFFSET: u64 = EXTENSION_OFFSET + 256;
/// EROFS's magic number.
pub const MAGIC: u32 = 0xE0F5_E1E2;
/// Compatible feature bit that marks RAFS v6.
pub const COMPAT_RAFS_V6: u32 = 0x4000_0000;
/// Incompatible feature bit: files are made of chunks.
pub const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
/// Incompatible feature bit: there are device slots.
pub const INCOMPAT_DEVICE_TABLE: u32 = 0x8;

/// The EROFS superblock, 128 bytes at 1,024.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 4 | `magic` | [`MAGIC`] |
/// | 4 | 4 | `checksum` | 0: RAFS has none |
/// | 8 | 4 | `feature_compat` | [`COMPAT_RAFS_V6`] |
/// | 12 | 1 | `block_bits` | 12, or 9 in tarfs mode |
/// | 13 | 1 | `ext_slots` | 0 |
/// | 14 | 2 | `root_nid` | of the root directory, not 0 |
/// | 16 | 8 | `inodes` | number of inodes |
/// | 24 | 8 | `build_time` | 0 |
/// | 32 | 4 | `build_time_nsec` | 0 |
/// | 36 | 4 | `blocks` | number of blocks of all devices |
/// | 40 | 4 | `meta_blkaddr` | block from which nids count |
/// | 44 | 4 | `xattr_blkaddr` | 0: no shared extended attributes |
/// | 48 | 16 | `uuid` | 0 |
/// | 64 | 16 | `volume_name` | 0 |
/// | 80 | 4 | `feature_incompat` | [`INCOMPAT_CHUNKED_FILE`] and [`INCOMPAT_DEVICE_TABLE`], exactly |
/// | 84 | 2 | `union` | 0 |
/// | 86 | 2 | `extra_devices` | number of device slots |
/// | 88 | 2 | `device_slot_offset` | in units of 128 bytes: 11 |
/// | 90 | 38 | `reserved` | 0 |
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the table above")]
pub struct ErofsSuperblock {
    pub magic: U32,
    pub checksum: U32,
    pub feature_compat: U32,
    pub block_bits: u8,
    pub ext_slots: u8,
    pub root_nid: U16,
    pub inodes: U64,
    pub build_time: U64,
    pub build_time_nsec: U32,
    pub blocks: U32,
    pub meta_blkaddr: U32,
    pub xattr_blkaddr: U32,
    pub uuid: [u8; 16],
    pub volume_name: [u8; 16],
    pub feature_incompat: U32,
    pub union: U16,
    pub extra_devices: U16,
    pub device_slot_offset: U16,
    pub reserved: [u8; 38],
}
assert_layout!(ErofsSuperblock, 128, {
    magic: 0, checksum: 4, feature_compat: 8, block_bits: 12, ext_slots: 13, root_nid: 14, inodes: 16, build_time: 24,
    build_time_nsec: 32, blocks: 36, meta_blkaddr: 40, xattr_blkaddr: 44, uuid: 48, volume_name: 64,
    feature_incompat: 80, union: 84, extra_devices: 86, device_slot_offset: 88, reserved: 90,
});

/// The extension superblock, 256 bytes at 1,152.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 8 | `flags` | [`super::flags::superblock`] |
/// | 8 | 8 | `blob_table_offset` | bytes, a multiple of 4,096 |
/// | 16 | 4 | `blob_table_size` | bytes |
/// | 20 | 4 | `chunk_size` | bytes |
/// | 24 | 8 | `chunk_table_offset` | bytes, a multiple of 4,096 |
/// | 32 | 8 | `chunk_table_size` | bytes |
/// | 40 | 8 | `prefetch_table_offset` | bytes |
/// | 48 | 4 | `prefetch_table_size` | bytes |
/// | 52 | 4 | `padding` | 0 |
/// | 56 | 200 | `reserved` | 0 |
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the table above")]
pub struct ExtensionSuperblock {
    pub flags: U64,
    pub blob_table_offset: U64,
    pub blob_table_size: U32,
    pub chunk_size: U32,
    pub chunk_table_offset: U64,
    pub chunk_table_size: U64,
    pub prefetch_table_offset: U64,
    pub prefetch_table_size: U32,
    pub padding: U32,
    pub reserved: [u8; 200],
}
assert_layout!(ExtensionSuperblock, 256, {
    flags: 0, blob_table_offset: 8, blob_table_size: 16, chunk_size: 20, chunk_table_offset: 24, chunk_table_size: 32,
    prefetch_table_offset: 40, prefetch_table_size: 48, padding: 52, reserved: 56,
});
