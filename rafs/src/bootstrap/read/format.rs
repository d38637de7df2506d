//! What either version of the format answers. [`Bootstrap`](super::Bootstrap) asks, and does not know which one it is.

use std::fmt::Debug;
use std::io::Write;
use std::ops::Range;

use super::data::Data;
use super::pieces::Pieces;
use super::{Directory, DumpError, Inode, Nid, ReadError, Version};
use crate::blob::{Blob, BlobIndex, Chunk, ChunkIndex};
use crate::tree::Xattrs;

/// Entries of a prefetch table that are looked at: as many as the longest recorded trace has. A table may be gigabytes that repeat one
/// file.
pub(super) const PREFETCH_LIMIT: usize = 1 << 16;

/// What a superblock says of the whole image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Summary {
    pub(super) version: Version,
    /// In bytes.
    pub(super) chunk_size: u32,
    /// The number of inodes that is stated. Nothing relies on it.
    pub(super) inodes: u64,
    pub(super) root: Nid,
}

/// A bootstrap whose superblock and blob tables were read.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) format: Box<dyn Format>,
    /// The blobs, and how many chunks each has.
    pub(super) blobs: Vec<(Blob, u32)>,
}

/// A version of the format: it knows where things are in a bootstrap's bytes, which it is given with every question.
///
/// Its parts are the files in the folder of each version.
pub(super) trait Format: Inodes + Directories + Chunks + Dump + Debug + Send + Sync {
    fn summary(&self) -> Summary;

    /// The files and directories that a daemon should fetch first, from [`PREFETCH_LIMIT`] entries at most.
    fn prefetch(&self, data: &Data) -> Result<Vec<Nid>, ReadError>;
}

/// Files of any type.
pub(super) trait Inodes {
    fn inode(&self, data: &Data, nid: Nid) -> Result<Inode, ReadError>;

    /// The bytes that an inode takes with its extended attributes, and in version 5 with its name.
    fn inode_size(&self, data: &Data, nid: Nid) -> Result<u64, ReadError>;

    fn read_link<'a>(&self, data: &'a Data, nid: Nid) -> Result<&'a [u8], ReadError>;

    /// All extended attributes that are stored for a file.
    fn xattrs(&self, data: &Data, nid: Nid) -> Result<Xattrs, ReadError>;
}

/// Directories.
pub(super) trait Directories {
    fn lookup(&self, data: &Data, directory: Nid, name: &[u8]) -> Result<Option<Nid>, ReadError>;

    fn read_dir<'a>(
        &'a self,
        data: &'a Data,
        directory: Nid,
        offset: u64,
    ) -> Result<Directory<'a>, ReadError>;

    /// The least number of bytes that the entries of a directory take.
    fn directory_size(&self, data: &Data, directory: Nid) -> Result<u64, ReadError>;
}

/// An iterator over chunks with their places in blobs.
pub(super) type DescribedChunks<'a> =
    Box<dyn ExactSizeIterator<Item = Result<(BlobIndex, ChunkIndex, Chunk), ReadError>> + 'a>;

/// Chunks, and which of them files consist of.
pub(super) trait Chunks {
    /// Whether chunks are described at all.
    fn has_chunk_table(&self) -> bool;

    /// A chunk as it is described. Of a batch member, index and offset in the batch are not known here and are 0.
    fn chunk(
        &self,
        data: &Data,
        properties: &Blob,
        blob: BlobIndex,
        chunk: ChunkIndex,
    ) -> Result<Chunk, ReadError>;

    /// All chunks that are described, as [`chunk`](Self::chunk) gives them.
    fn described<'a>(&'a self, data: &'a Data, blobs: &'a [Blob]) -> Result<DescribedChunks<'a>, ReadError>;

    /// Where the bytes of a range of a regular file are, in an image of so many blobs.
    fn pieces<'a>(
        &self,
        data: &'a Data,
        nid: Nid,
        range: Range<u64>,
        blobs: usize,
    ) -> Result<Pieces<'a>, ReadError>;
}

/// What a version shows as text in its own way.
pub(super) trait Dump {
    /// Superblocks and tables.
    fn dump_tables(&self, data: &Data, out: &mut dyn Write) -> Result<(), DumpError>;

    /// An inode's own fields.
    fn dump_inode(&self, data: &Data, nid: Nid, out: &mut dyn Write) -> Result<(), DumpError>;
}
