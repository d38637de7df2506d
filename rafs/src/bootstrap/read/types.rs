//! What a bootstrap says about its files.

use super::{At, ReadError};
use crate::blob::{BlobIndex, ChunkIndex};
use crate::layout::v6::FileType;
use crate::tree::{DeviceNumber, Time};

/// An inode of a bootstrap.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Nid(pub u64);

impl std::fmt::Display for Nid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The version of the format.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// RAFS v5.
    V5,
    /// RAFS v6, on an EROFS layout.
    V6,
}

/// What is known of a file of any type, without names, extended attributes and content.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Inode {
    /// Its type.
    pub kind: FileType,
    /// Size in bytes: of a regular file its content, of a symbolic link its target, of a directory what it takes here.
    pub size: u64,
    /// Permission bits with set-uid, set-gid and sticky: `0o7777`.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification of the content.
    pub mtime: Time,
    /// Number of names.
    pub nlink: u32,
    /// Of a character or block device, its number.
    pub rdev: DeviceNumber,
}

/// An entry of a directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DirectoryEntry<'a> {
    /// The file.
    pub nid: Nid,
    /// Its name here.
    pub name: &'a [u8],
    /// Its type, as the directory has it.
    pub kind: FileType,
    /// Where to go on reading behind this entry.
    pub next_offset: u64,
}

/// A piece of a regular file within one chunk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChunkUse {
    /// The blob.
    pub blob: BlobIndex,
    /// The chunk in the blob.
    pub chunk: ChunkIndex,
    /// Where the chunk begins in the uncompressed blob, and so in its cache file, in bytes.
    pub uncompressed_offset: u64,
    /// Where the piece begins in the chunk, in bytes.
    pub offset_in_chunk: u32,
    /// Size of the piece in bytes, at least 1.
    pub len: u32,
    /// Where the piece begins in the file, in bytes.
    pub file_offset: u64,
}

impl ChunkUse {
    /// The bytes of this piece out of the chunk's content.
    ///
    /// # Errors
    ///
    /// When the chunk is smaller than the file needs it to be.
    pub fn of<'a>(&self, content: &'a [u8]) -> Result<&'a [u8], ReadError> {
        let start = self.offset_in_chunk as usize;
        let found = content.get(start..).and_then(|rest| rest.get(..self.len as usize));
        let expected = "as many bytes as the file has of it";
        found.ok_or(ReadError::corrupt("chunk", At::Number(u64::from(self.chunk.0)), expected))
    }
}

/// The entries of a directory. Ends after an error.
pub struct Directory<'a>(Box<dyn Iterator<Item = Result<DirectoryEntry<'a>, ReadError>> + Send + 'a>);

impl<'a> Directory<'a> {
    pub(super) fn new(
        entries: impl Iterator<Item = Result<DirectoryEntry<'a>, ReadError>> + Send + 'a,
    ) -> Self {
        Self(Box::new(entries))
    }
}

impl<'a> Iterator for Directory<'a> {
    type Item = Result<DirectoryEntry<'a>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}
