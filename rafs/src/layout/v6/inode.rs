//! Inodes, directory entries, chunk addresses and extended attributes, as EROFS has them.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::assert_layout;

/// Inodes start at multiples of this many bytes; a nid counts these slots.
pub const SLOT_SIZE: u64 = 32;
/// Bit of `format`: the inode is extended.
pub const FORMAT_EXTENDED: u16 = 1;
/// `format` bits 1–3: the content is in blocks of its own.
pub const LAYOUT_PLAIN: u16 = 0;
/// `format` bits 1–3: as [`LAYOUT_PLAIN`], but what does not fill a block is behind the inode.
pub const LAYOUT_INLINE: u16 = 2;
/// `format` bits 1–3: chunk addresses are behind the inode.
pub const LAYOUT_CHUNKED: u16 = 4;
/// Chunk format bit: addresses are [`ChunkAddress`].
pub const CHUNK_FORMAT_INDEXES: u32 = 0x20;
/// Chunk format bits 0–4: chunk size as a power of two of blocks.
pub const CHUNK_FORMAT_SIZE_MASK: u32 = 0x1f;

/// A compact inode, 32 bytes, which has no time.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 2 | `format` | bit 0 is 0; bits 1–3 layout |
/// | 2 | 2 | `xattr_count` | 0, or 1 + (bytes of extended attributes − 12) / 4 |
/// | 4 | 2 | `mode` | type and permissions |
/// | 6 | 2 | `links` | number of names |
/// | 8 | 4 | `size` | bytes |
/// | 12 | 4 | `reserved` | 0 |
/// | 16 | 4 | `union` | as in [`ExtendedInode`] |
/// | 20 | 4 | `ino` | inode number for 32-bit programs |
/// | 24 | 2 | `uid` | owner |
/// | 26 | 2 | `gid` | group |
/// | 28 | 4 | `reserved2` | 0 |
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the table above")]
pub struct CompactInode {
    pub format: U16,
    pub xattr_count: U16,
    pub mode: U16,
    pub links: U16,
    pub size: U32,
    pub reserved: U32,
    pub union: U32,
    pub ino: U32,
    pub uid: U16,
    pub gid: U16,
    pub reserved2: U32,
}
assert_layout!(CompactInode, 32, {
    format: 0, xattr_count: 2, mode: 4, links: 6, size: 8, reserved: 12, union: 16, ino: 20, uid: 24, gid: 26,
    reserved2: 28,
});

/// An extended inode, 64 bytes.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 2 | `format` | bit 0 is 1; bits 1–3 layout |
/// | 2 | 2 | `xattr_count` | 0, or 1 + (bytes of extended attributes − 12) / 4 |
/// | 4 | 2 | `mode` | type and permissions |
/// | 6 | 2 | `reserved` | 0 |
/// | 8 | 8 | `size` | bytes |
/// | 16 | 4 | `union` | content's block, chunk format or device number |
/// | 20 | 4 | `ino` | inode number for 32-bit programs |
/// | 24 | 4 | `uid` | owner |
/// | 28 | 4 | `gid` | group |
/// | 32 | 8 | `mtime` | seconds since 1970, signed |
/// | 40 | 4 | `mtime_nsec` | nanoseconds |
/// | 44 | 4 | `links` | number of names |
/// | 48 | 16 | `reserved2` | 0 |
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the table above")]
pub struct ExtendedInode {
    pub format: U16,
    pub xattr_count: U16,
    pub mode: U16,
    pub reserved: U16,
    pub size: U64,
    pub union: U32,
    pub ino: U32,
    pub uid: U32,
    pub gid: U32,
    pub mtime: U64,
    pub mtime_nsec: U32,
    pub links: U32,
    pub reserved2: [u8; 16],
}
assert_layout!(ExtendedInode, 64, {
    format: 0, xattr_count: 2, mode: 4, reserved: 6, size: 8, union: 16, ino: 20, uid: 24, gid: 28, mtime: 32,
    mtime_nsec: 40, links: 44, reserved2: 48,
});

/// A directory entry, 12 bytes. A block starts with its entries, then come their names in the same order.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 8 | `nid` | of the inode |
/// | 8 | 2 | `name_offset` | bytes into the block; of the first entry, so also 12 times the number of entries |
/// | 10 | 1 | `file_type` | see [`FileType`] |
/// | 11 | 1 | `reserved` | 0 |
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the table above")]
pub struct Dirent {
    pub nid: U64,
    pub name_offset: U16,
    pub file_type: u8,
    pub reserved: u8,
}
assert_layout!(Dirent, 12, { nid: 0, name_offset: 8, file_type: 10, reserved: 11 });

/// A file's type as directory entries have it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum FileType {
    /// Regular file.
    Regular = 1,
    /// Directory.
    Directory = 2,
    /// Character device.
    CharDevice = 3,
    /// Block device.
    BlockDevice = 4,
    /// Named pipe.
    Fifo = 5,
    /// Unix socket.
    Socket = 6,
    /// Symbolic link.
    Symlink = 7,
}

impl std::fmt::Display for FileType {
    /// The type in one word, which messages and JSON have alike.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.word())
    }
}

impl FileType {
    /// The type in one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::Directory => "directory",
            Self::CharDevice => "char-device",
            Self::BlockDevice => "block-device",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::Symlink => "symlink",
        }
    }

    /// The type bits of a mode.
    pub const MODE_MASK: u16 = 0o170_000;

    /// The type of a mode; `None` for an unknown one.
    pub fn of_mode(mode: u16) -> Option<Self> {
        Some(match mode & Self::MODE_MASK {
            0o100_000 => Self::Regular,
            0o040_000 => Self::Directory,
            0o020_000 => Self::CharDevice,
            0o060_000 => Self::BlockDevice,
            0o010_000 => Self::Fifo,
            0o140_000 => Self::Socket,
            0o120_000 => Self::Symlink,
            _ => return None,
        })
    }

    /// The type bits of the mode.
    pub fn mode(self) -> u16 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::CharDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Socket => 0o140_000,
            Self::Symlink => 0o120_000,
        }
    }
}

/// The address of a chunk, 8 bytes.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 2 | `index_low` | chunk index bits 0–15 (EROFS ignores it) |
/// | 2 | 1 | `device` | blob index plus one |
/// | 3 | 1 | `index_high` | chunk index bits 16–23 (EROFS masks it out) |
/// | 4 | 4 | `block` | 4 KiB blocks into the uncompressed blob |
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the table above")]
pub struct ChunkAddress {
    pub index_low: U16,
    pub device: u8,
    pub index_high: u8,
    pub block: U32,
}
assert_layout!(ChunkAddress, 8, { index_low: 0, device: 2, index_high: 3, block: 4 });

impl ChunkAddress {
    /// The chunk's index in its blob.
    pub fn index(&self) -> u32 {
        u32::from(self.index_low.get()) | u32::from(self.index_high) << 16
    }
}

/// The head of an inode's extended attributes, 12 bytes.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 4 | `name_filter` | 0: none |
/// | 4 | 1 | `shared_count` | number of 4-byte references to shared attributes that follow: 0 in RAFS |
/// | 5 | 7 | `reserved` | 0 |
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the table above")]
pub struct XattrHeader {
    pub name_filter: U32,
    pub shared_count: u8,
    pub reserved: [u8; 7],
}
assert_layout!(XattrHeader, 12, { name_filter: 0, shared_count: 4, reserved: 5 });

/// An extended attribute, 4 bytes, then the name without its prefix, then the value, then padding to 4 bytes.
///
/// | offset | size | field | meaning |
/// |---|---|---|---|
/// | 0 | 1 | `name_len` | bytes |
/// | 1 | 1 | `name_index` | prefix, see [`XATTR_PREFIXES`] |
/// | 2 | 2 | `value_size` | bytes |
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "the table above")]
pub struct XattrEntry {
    pub name_len: u8,
    pub name_index: u8,
    pub value_size: U16,
}
assert_layout!(XattrEntry, 4, { name_len: 0, name_index: 1, value_size: 2 });

/// Prefixes of extended attribute names and their numbers. A prefix that does not end in a dot is the whole name.
pub const XATTR_PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];
