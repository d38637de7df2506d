//! The file system of an image, without FUSE: from inode numbers to attributes, names and bytes.

mod attributes;

use std::sync::Arc;

use rafs::bootstrap::{Bootstrap, Nid, ReadError as BootstrapError};

pub use attributes::{Attributes, Ino};

use crate::cache::Lease;
use crate::front::{Front, Piece, ReadError};

/// Why an operation fails.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The file has no such extended attribute.
    #[error("no such extended attribute")]
    NoXattr,
    /// The metadata is broken, or the operation does not suit the file.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// A file claims more of a chunk than there is.
    #[error("the file has bytes up to {end} of a chunk of {size}")]
    OutsideChunk {
        /// Where the file's piece ends in the chunk.
        end: u64,
        /// The chunk's size in bytes.
        size: u32,
    },
    /// The content is not to be had.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// An entry of a directory.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// The file's attributes.
    pub attributes: Attributes,
    /// Where to go on reading behind it.
    pub next_offset: u64,
}

/// Totals of the file system.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Totals {
    /// Bytes of content, each chunk counted once.
    pub bytes: u64,
    /// Files of all types.
    pub files: u64,
}

/// A mounted image.
#[derive(Debug)]
pub struct FileSystem {
    bootstrap: Arc<Bootstrap>,
    /// In order of the image's blob indexes.
    blobs: Vec<Lease>,
    front: Arc<Front>,
}

/// Offsets of a directory below this are those of `.` and `..`, which a bootstrap's listing leaves out.
const DOTS: u64 = 2;

impl FileSystem {
    /// The file system of `bootstrap`, whose blobs are cached in `blobs`, in the same order.
    pub fn new(bootstrap: Arc<Bootstrap>, blobs: Vec<Lease>, front: Arc<Front>) -> Self {
        Self { bootstrap, blobs, front }
    }

    fn nid(&self, ino: Ino) -> Nid {
        ino.nid(self.bootstrap.root())
    }

    fn attributes_of(&self, nid: Nid) -> Result<Attributes, FsError> {
        Ok(Attributes { ino: Ino::of(nid, self.bootstrap.root()), inode: self.bootstrap.inode(nid)? })
    }

    /// The file that a directory names so.
    ///
    /// # Errors
    ///
    /// [`FsError`], as from all methods.
    pub fn lookup(&self, directory: Ino, name: &[u8]) -> Result<Option<Attributes>, FsError> {
        let found = self.bootstrap.lookup(self.nid(directory), name)?;
        found.map(|nid| self.attributes_of(nid)).transpose()
    }

    /// The attributes of a file.
    ///
    /// # Errors
    ///
    /// [`FsError`].
    pub fn attributes(&self, ino: Ino) -> Result<Attributes, FsError> {
        self.attributes_of(self.nid(ino))
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    ///
    /// [`FsError`].
    pub fn read_link(&self, ino: Ino) -> Result<&[u8], FsError> {
        Ok(self.bootstrap.read_link(self.nid(ino))?)
    }

    /// Shows the entries of a directory from `offset` on, `.` and `..` first, until `visit` says that it has enough.
    ///
    /// # Errors
    ///
    /// [`FsError`].
    pub fn read_directory(
        &self,
        directory: Ino,
        offset: u64,
        mut visit: impl FnMut(Entry<'_>) -> bool,
    ) -> Result<(), FsError> {
        let nid = self.nid(directory);
        if offset < 1 {
            let attributes = self.attributes_of(nid)?;
            if visit(Entry { name: b".", attributes, next_offset: 1 }) {
                return Ok(());
            }
        }
        if offset < DOTS {
            let attributes = self.attributes_of(self.bootstrap.parent(nid)?)?;
            if visit(Entry { name: b"..", attributes, next_offset: DOTS }) {
                return Ok(());
            }
        }
        for entry in self.bootstrap.read_dir(nid, offset.saturating_sub(DOTS))? {
            let entry = entry?;
            let attributes = self.attributes_of(entry.nid)?;
            let next_offset = entry.next_offset.saturating_add(DOTS);
            if visit(Entry { name: entry.name, attributes, next_offset }) {
                break;
            }
        }
        Ok(())
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    ///
    /// [`FsError::NoXattr`] and others.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Box<[u8]>, FsError> {
        self.bootstrap.xattrs(self.nid(ino))?.remove(name).ok_or(FsError::NoXattr)
    }

    /// The names of all extended attributes, each ended by NUL.
    ///
    /// # Errors
    ///
    /// [`FsError`].
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let xattrs = self.bootstrap.xattrs(self.nid(ino))?;
        Ok(xattrs.into_keys().flat_map(|name| name.into_vec().into_iter().chain([0])).collect())
    }

    /// Answers `done` with the bytes of a file from `offset` on: `size` of them, or fewer at its end. The answer may
    /// come later, from another thread.
    pub fn read(
        &self,
        ino: Ino,
        offset: u64,
        size: u32,
        done: impl FnOnce(Result<&[u8], FsError>) + Send + 'static,
    ) {
        match self.pieces(self.nid(ino), offset, size) {
            Ok(pieces) => self.front.read(pieces, move |result| done(result.map_err(FsError::from))),
            Err(error) => done(Err(error)),
        }
    }

    fn pieces(&self, nid: Nid, offset: u64, size: u32) -> Result<Vec<Piece>, FsError> {
        let mut pieces = Vec::new();
        for piece in self.bootstrap.chunks(nid, offset..offset.saturating_add(u64::from(size)))? {
            let piece = piece?;
            // Where the chunk is said to be, rather than the file's own address of it: the worker puts it there.
            let chunk = self.bootstrap.chunk(piece.blob, piece.chunk)?;
            let end = u64::from(piece.offset_in_chunk) + u64::from(piece.len);
            if end > u64::from(chunk.uncompressed_size) {
                return Err(FsError::OutsideChunk { end, size: chunk.uncompressed_size });
            }
            let blob = self.blobs.get(usize::from(piece.blob.0));
            pieces.push(Piece::Chunk {
                blob: Arc::clone(blob.ok_or(BootstrapError::NoSuchBlob(piece.blob.0))?.blob()),
                chunk: piece.chunk,
                offset: chunk.uncompressed_offset.saturating_add(u64::from(piece.offset_in_chunk)),
                len: piece.len as usize,
            });
        }
        Ok(pieces)
    }

    /// Totals of the file system.
    pub fn totals(&self) -> Totals {
        let sizes = self.bootstrap.blobs().iter().map(|blob| blob.uncompressed_size);
        Totals { bytes: sizes.fold(0, u64::saturating_add), files: self.bootstrap.inode_count() }
    }
}
