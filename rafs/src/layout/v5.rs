//! RAFS v5: superblock, inode table, blob tables, then inodes with names, extended attributes and chunks.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assert_layout;

/// `RAFS` as a number.
pub const MAGIC: u32 = 0x5241_4653;
/// Version 5.
pub const VERSION: u32 = 0x500;
/// Size in bytes of the superblock with its reserve.
pub const SUPERBLOCK_SIZE: u32 = 8192;
/// Inodes and what follows them start at multiples of this many bytes.
pub const ALIGNMENT: u64 = 8;

/// The superblock at 0, of which 80 bytes are in use.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 4 | `magic` | [`MAGIC`] |
/// | 4 | 4 | `version` | [`VERSION`] |
/// | 8 | 4 | `superblock_size` | 8,192 |
/// | 12 | 4 | `chunk_size` | bytes |
/// | 16 | 8 | `flags` | [`super::flags::superblock`] |
/// | 24 | 8 | `inodes` | number of files, hard links counted once |
/// | 32 | 8 | `inode_table_offset` | bytes |
/// | 40 | 8 | `prefetch_table_offset` | bytes |
/// | 48 | 8 | `blob_table_offset` | bytes |
/// | 56 | 4 | `inode_table_entries` | number of names |
/// | 60 | 4 | `prefetch_table_entries` | number |
/// | 64 | 4 | `blob_table_size` | bytes |
/// | 68 | 4 | `blob_details_entries` | number |
/// | 72 | 8 | `blob_details_offset` | bytes |
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the table above")]
pub struct RafsSuperblock {
    pub magic: U32,
    pub version: U32,
    pub superblock_size: U32,
    pub chunk_size: U32,
    pub flags: U64,
    pub inodes: U64,
    pub inode_table_offset: U64,
    pub prefetch_table_offset: U64,
    pub blob_table_offset: U64,
    pub inode_table_entries: U32,
    pub prefetch_table_entries: U32,
    pub blob_table_size: U32,
    pub blob_details_entries: U32,
    pub blob_details_offset: U64,
}
assert_layout!(RafsSuperblock, 80, {
    magic: 0, version: 4, superblock_size: 8, chunk_size: 12, flags: 16, inodes: 24, inode_table_offset: 32,
    prefetch_table_offset: 40, blob_table_offset: 48, inode_table_entries: 56, prefetch_table_entries: 60,
    blob_table_size: 64, blob_details_entries: 68, blob_details_offset: 72,
});

/// What the extended blob table says of a blob, 64 bytes. The blob table itself is text: for each blob 8 bytes and its
/// id, with a NUL between blobs.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 4 | `chunk_count` | number of chunks |
/// | 4 | 4 | `features` | [`super::flags::blob`] |
/// | 8 | 8 | `uncompressed_size` | bytes |
/// | 16 | 8 | `compressed_size` | bytes |
/// | 24 | 40 | `reserved` | 0 |
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the table above")]
pub struct BlobDetails {
    pub chunk_count: U32,
    pub features: U32,
    pub uncompressed_size: U64,
    pub compressed_size: U64,
    pub reserved: [u8; 40],
}
assert_layout!(BlobDetails, 64, {
    chunk_count: 0, features: 4, uncompressed_size: 8, compressed_size: 16, reserved: 24,
});

/// Flags of an inode.
pub mod inode_flags {
    /// It is a symbolic link.
    pub const SYMLINK: u64 = 1;
    /// It has several names.
    pub const HARDLINK: u64 = 2;
    /// It has extended attributes.
    pub const XATTR: u64 = 4;
    /// Some of its chunks are holes.
    pub const HAS_HOLE: u64 = 8;
}

/// An inode, one for each name, 128 bytes. Behind it, each part aligned to 8 bytes: the name; a symbolic link's target;
/// extended attributes; a regular file's chunks, which are [`super::chunk_table::ChunkEntry`]. Extended attributes are
/// 8 bytes with their size, then of each 4 bytes with its size, the full name, a NUL and the value, without alignment.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 32 | `digest` | of the content's chunk digests |
/// | 32 | 8 | `parent` | inode number of the directory |
/// | 40 | 8 | `ino` | inode number: the index of the file's first name |
/// | 48 | 4 | `uid` | owner |
/// | 52 | 4 | `gid` | group |
/// | 56 | 4 | `project` | project |
/// | 60 | 4 | `mode` | type and permissions |
/// | 64 | 8 | `size` | bytes |
/// | 72 | 8 | `blocks` | blocks of 512 bytes |
/// | 80 | 8 | `flags` | [`inode_flags`] |
/// | 88 | 4 | `links` | number of names |
/// | 92 | 4 | `child_index` | index of a directory's first entry |
/// | 96 | 4 | `child_count` | number of entries or chunks |
/// | 100 | 2 | `name_size` | bytes |
/// | 102 | 2 | `symlink_size` | bytes |
/// | 104 | 4 | `rdev` | device number |
/// | 108 | 4 | `mtime_nsec` | nanoseconds |
/// | 112 | 8 | `mtime` | seconds since 1970, signed |
/// | 120 | 8 | `reserved` | 0 |
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the table above")]
pub struct InodeRecord {
    pub digest: [u8; 32],
    pub parent: U64,
    pub ino: U64,
    pub uid: U32,
    pub gid: U32,
    pub project: U32,
    pub mode: U32,
    pub size: U64,
    pub blocks: U64,
    pub flags: U64,
    pub links: U32,
    pub child_index: U32,
    pub child_count: U32,
    pub name_size: U16,
    pub symlink_size: U16,
    pub rdev: U32,
    pub mtime_nsec: U32,
    pub mtime: U64,
    pub reserved: [u8; 8],
}
assert_layout!(InodeRecord, 128, {
    digest: 0, parent: 32, ino: 40, uid: 48, gid: 52, project: 56, mode: 60, size: 64, blocks: 72, flags: 80,
    links: 88, child_index: 92, child_count: 96, name_size: 100, symlink_size: 102, rdev: 104, mtime_nsec: 108,
    mtime: 112, reserved: 120,
});
