//! Why a bootstrap cannot be read.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::Nid;
use crate::blob::meta::MetaError;

/// Why a bootstrap cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum ReadError {
    #[error("cannot map bootstrap {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("bootstrap {} cannot be read any longer: the disk is bad, or somebody shortened the file", path.display())]
    Damaged { path: PathBuf },
    #[error(
        "not a RAFS bootstrap: expected the superblock of version 6 at byte 1024 or of version 5 at byte 0"
    )]
    NotABootstrap,
    /// Which bootstrap it is. What it says is in the message, so that it shows wherever the error does.
    #[error("{name}: {error}{}", if error.is_damage() { "; fetch or make it again" } else { "" })]
    Of { name: String, error: Box<ReadError> },
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    #[error(
        "{what} at byte {offset}, {len} bytes, is outside the bootstrap of {size} bytes: it is cut off, or damaged"
    )]
    OutOfBounds { what: &'static str, offset: u64, len: u64, size: u64 },
    #[error("corrupt {what} {at}: expected {expected}{}", found.as_ref().map_or_else(String::new, |found| format!(", found {found}")))]
    Corrupt { what: &'static str, at: At, expected: &'static str, found: Option<String> },
    #[error("inode {} is no directory", .0.0)]
    NotADirectory(Nid),
    #[error("inode {} is no regular file", .0.0)]
    NotAFile(Nid),
    #[error("inode {} is no symbolic link", .0.0)]
    NotASymlink(Nid),
    #[error("there is no blob {0}")]
    NoSuchBlob(u8),
    #[error("blob {blob} has no chunk {chunk} in the bootstrap's chunk table")]
    NoSuchChunk { blob: u8, chunk: u32 },
    #[error("blob {blob} has batches: its chunk information (blob.meta) is needed")]
    NeedsChunkInfo { blob: u8 },
    #[error("the chunk information of blob {blob} is unusable")]
    ChunkInfo { blob: u8, source: MetaError },
}

/// Where something is in a bootstrap.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum At {
    /// At this offset in bytes.
    Byte(u64),
    /// The one of this number: an inode, an entry of a table.
    Number(u64),
    /// The inode of this number, at this offset in bytes.
    Inode(u64, u64),
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Byte(offset) => write!(f, "at byte {offset}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Inode(number, offset) => write!(f, "{number} at byte {offset}"),
        }
    }
}

impl ReadError {
    pub(crate) fn corrupt(what: &'static str, at: At, expected: &'static str) -> Self {
        Self::Corrupt { what, at, expected, found: None }
    }

    /// Says what was found in place of what was expected.
    pub(crate) fn found(self, value: impl fmt::Display) -> Self {
        match self {
            Self::Corrupt { what, at, expected, .. } => {
                Self::Corrupt { what, at, expected, found: Some(value.to_string()) }
            }
            other => other,
        }
    }

    /// Says which bootstrap it is.
    pub(crate) fn of(self, name: &str) -> Self {
        match self {
            // Has the path already.
            Self::Io { .. } | Self::Damaged { .. } | Self::Of { .. } => self,
            error => Self::Of { name: name.to_owned(), error: Box::new(error) },
        }
    }

    /// Whether the bootstrap is not what it was when it was made.
    fn is_damage(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::OutOfBounds { .. })
    }
}
