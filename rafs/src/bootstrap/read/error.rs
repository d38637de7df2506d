//! Why a bootstrap cannot be read.

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
    #[error("not a RAFS bootstrap: no superblock of version 5 or 6")]
    NotABootstrap,
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    #[error("{what} at {offset}, {len} bytes, is outside the bootstrap of {size} bytes")]
    OutOfBounds { what: &'static str, offset: u64, len: u64, size: u64 },
    #[error("corrupt {what} at {at}: expected {expected}")]
    Corrupt { what: &'static str, at: u64, expected: &'static str },
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
