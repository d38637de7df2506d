//! Where a layer's files come from: a tar stream, a directory, or an image that is to be built again.
//!
//! A source is read strictly forwards. [`Source::next_entry`] steps to the next file and [`Source::read`] gives the
//! content of the file that was stepped to; content that is not read is skipped. Sources report what they find and
//! judge nothing: entries may repeat, lack their parents, or have absolute paths and `..` in them.

pub mod decompress;
pub mod directory;
pub mod image;
pub mod tar;

use crate::tree::{DeviceNumber, Metadata};

/// A file as its source describes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// The name in the source, never empty and otherwise as it stands there: it may have a leading `/` or `./`, `..`
    /// components and trailing slashes, and need not be UTF-8. The root directory is `.` or `./` or `/`.
    pub path: Vec<u8>,
    /// Owner, mode, time, extended attributes. For a hard link those that the source repeats; its target's count.
    pub metadata: Metadata,
    /// Type, and what the type needs.
    pub kind: EntryKind,
}

/// What a source's file is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file; [`Source::read`] gives exactly `size` bytes or fails.
    Regular {
        /// Size in bytes, holes included.
        size: u64,
    },
    /// A symbolic link and its target, never empty.
    Symlink(Box<[u8]>),
    /// Another name of a file, and that file's path as [`Entry::path`] would have it. A tar's link may name an entry
    /// that is not a regular file, that follows, or that does not exist.
    HardLink(Vec<u8>),
    /// A character device.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

/// A sequence of files with content.
pub trait Source {
    /// Steps to the next file; `None` at the end. After an error the source is at its end.
    fn next_entry(&mut self) -> Result<Option<Entry>, SourceError>;

    /// Reads content of the current file into `buf` from where the last call ended, holes as zeros, and says how much:
    /// 0 at the end of the content, for what is not a regular file, and if `buf` is empty. May read less than `buf`
    /// holds; large buffers are filled without an intermediate copy where the source allows it.
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, SourceError>;
}

/// Why a source could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A tar stream is broken or cannot be read.
    #[error(transparent)]
    Tar(#[from] tar::TarError),
    /// A directory cannot be read, or changes meanwhile.
    #[error(transparent)]
    Directory(#[from] directory::DirectoryError),
    /// An image's blobs cannot be read.
    #[error(transparent)]
    Image(Box<crate::blob::source::BlobError>),
}
