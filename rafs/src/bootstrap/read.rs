//! Reading a bootstrap where it lies: nothing is parsed before it is asked for.
//!
//! The bytes may come from anywhere. Every offset is checked before it is followed, so hostile bytes lead to errors.

mod chunk_entry;
mod data;
mod dump;
mod error;
mod format;
mod image;
mod pieces;
mod search;
mod types;
mod v5;
mod v6;

use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use crate::blob::meta::BlobMeta;
use crate::blob::stream::Toc;
use crate::blob::{Blob, BlobIndex, Chunk, ChunkIndex};
use crate::digest::Digest;
use crate::sys::Map;
use crate::tree::Xattrs;
use data::Data;
use format::{DescribedChunks, Format, Opened};

pub use dump::{DumpError, dump};
pub use error::{At, ReadError};
pub use pieces::Pieces;
pub use types::{ChunkUse, Directory, DirectoryEntry, Inode, Nid, Version};

/// A bootstrap, mapped or in memory. Cheap to open and to read from any number of threads.
#[derive(Debug)]
pub struct Bootstrap {
    data: Data,
    format: Box<dyn Format>,
    blobs: Vec<Blob>,
    /// How many chunks each blob has.
    chunk_counts: Vec<u32>,
    metas: Vec<Option<BlobMeta>>,
    /// What it is called in errors, if it was opened from a file.
    name: Option<String>,
}

impl Bootstrap {
    /// Maps a bootstrap file, which must not be changed or shortened as long as this lives. Where that happens all the same,
    /// or the disk cannot read a block of it, [`sound`](Self::sound) tells; what was read before it did may be wrong.
    ///
    /// # Errors
    ///
    /// When the file cannot be mapped or is no bootstrap that this crate reads; the message names it.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        Self::open_as(path, &format!("bootstrap {}", path.display()))
    }

    /// [`open`](Self::open), where errors are of `name`: a bootstrap may lie in a file that says nothing to anybody.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn open_as(path: &Path, name: &str) -> Result<Self, ReadError> {
        let io = |source| ReadError::Io { path: path.to_owned(), source };
        // Looked at before it is opened: an image may have a named pipe or a device in the bootstrap's place, and to open
        // these may wait for ever, or do something. An empty file cannot be mapped, and is no bootstrap either.
        let metadata = std::fs::metadata(path).map_err(io)?;
        if !metadata.is_file() || metadata.len() == 0 {
            return Err(ReadError::NotABootstrap.of(name));
        }
        let file = File::open(path).map_err(io)?;
        let data = match Map::new(&file).map_err(io)? {
            Some(map) => Data::Mapped(map, path.to_owned()),
            // Too many are mapped for one more to be guarded.
            None => Data::Owned(std::fs::read(path).map_err(io)?),
        };
        let mut opened = Self::new(data).map_err(|error| error.of(name))?;
        opened.sound()?;
        opened.name = Some(name.to_owned());
        Ok(opened)
    }

    /// A bootstrap in memory.
    ///
    /// # Errors
    ///
    /// When the bytes are no bootstrap that this crate reads.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, ReadError> {
        Self::new(Data::Owned(bytes))
    }

    fn new(data: Data) -> Result<Self, ReadError> {
        let is_v5 = v5::RafsV5::detect(&data);
        let Opened { format, blobs } =
            if is_v5 { v5::RafsV5::open(&data)? } else { v6::RafsV6::open(&data)? };
        let metas = blobs.iter().map(|_| None).collect();
        let (blobs, chunk_counts) = blobs.into_iter().unzip();
        Ok(Self { data, format, blobs, chunk_counts, metas, name: None })
    }

    /// An error of this bootstrap, with its name.
    fn named(&self, error: ReadError) -> ReadError {
        match &self.name {
            Some(name) => error.of(name),
            None => error,
        }
    }

    /// Fails if some of the bootstrap could not be read since it was opened. Whoever keeps one open for long asks after
    /// reading from it, before believing what was read.
    ///
    /// # Errors
    ///
    /// [`ReadError::Damaged`], from then on.
    pub fn sound(&self) -> Result<(), ReadError> {
        self.data.sound()
    }

    /// Lets go of the pages of a mapped file that were read. The kernel keeps them as long as it has room, and they are read
    /// again when they are needed; until then they are not this process's memory.
    pub fn let_go(&self) {
        self.data.let_go();
    }

    /// RAFS version.
    pub fn version(&self) -> Version {
        self.format.summary().version
    }

    /// Size in bytes of the bootstrap.
    pub fn size(&self) -> u64 {
        self.data.len()
    }

    /// The chunk size of the image in bytes.
    pub fn chunk_size(&self) -> u32 {
        self.format.summary().chunk_size
    }

    /// The number of inodes that the superblock states. Nothing relies on it.
    pub fn inode_count(&self) -> u64 {
        self.format.summary().inodes
    }

    /// The root directory.
    pub fn root(&self) -> Nid {
        self.format.summary().root
    }

    /// The files and directories that a daemon should fetch first, each once; the root stands for everything. What the table
    /// has behind its first 65,536 entries is left out.
    ///
    /// # Errors
    ///
    /// When the table lies outside the bootstrap.
    pub fn prefetch(&self) -> Result<Vec<Nid>, ReadError> {
        let mut nids = self.format.prefetch(&self.data)?;
        let mut seen = HashSet::new();
        nids.retain(|nid| seen.insert(*nid));
        Ok(nids)
    }

    /// The blobs, in order of [`BlobIndex`], without their chunks.
    pub fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    /// Says which blob a layer's own bootstrap is a part of: its id and, where they are known, the size in bytes of the
    /// stream and its table of contents. Does nothing where all blobs have an id.
    pub fn set_own_blob(&mut self, id: Digest, stored_size: Option<u64>, toc: Option<&Toc>) {
        if let Some(own) = self.blobs.iter_mut().find(|blob| blob.id.is_none()) {
            own.id = Some(id);
            own.stored_size = stored_size.unwrap_or(own.stored_size);
            own.toc = toc.map(|toc| (toc.digest, toc.size)).or(own.toc);
        }
    }

    /// The number of chunks of a blob; 0 where there is no such blob.
    pub fn chunk_count(&self, blob: BlobIndex) -> u32 {
        self.chunk_counts.get(usize::from(blob.0)).copied().unwrap_or(0)
    }

    /// Whether the bootstrap itself describes chunks.
    pub fn has_chunk_table(&self) -> bool {
        self.format.has_chunk_table()
    }

    /// Whether [`set_chunk_info`](Self::set_chunk_info) gave the chunk information of a blob.
    pub fn has_chunk_info(&self, blob: BlobIndex) -> bool {
        self.metas.get(usize::from(blob.0)).is_some_and(Option::is_some)
    }

    /// Gives the chunk information of a blob that the bootstrap lacks, or has in part only: all of it for bootstraps
    /// without a chunk table, what a batch holds for blobs with batches.
    ///
    /// # Errors
    ///
    /// When there is no such blob.
    pub fn set_chunk_info(&mut self, blob: BlobIndex, meta: BlobMeta) -> Result<(), ReadError> {
        let slot = self.metas.get_mut(usize::from(blob.0)).ok_or(ReadError::NoSuchBlob(blob.0))?;
        *slot = Some(meta);
        Ok(())
    }

    /// The number of chunks in what [`set_chunk_info`](Self::set_chunk_info) gave for a blob.
    pub(crate) fn chunk_info_len(&self, blob: BlobIndex) -> u32 {
        self.metas.get(usize::from(blob.0)).and_then(Option::as_ref).map_or(0, BlobMeta::len)
    }

    /// Forgets what [`set_chunk_info`](Self::set_chunk_info) gave for a blob.
    pub(crate) fn drop_chunk_info(&mut self, blob: BlobIndex) {
        if let Some(slot) = self.metas.get_mut(usize::from(blob.0)) {
            *slot = None;
        }
    }

    /// Whether nothing works on a blob's chunks without its chunk information: the bootstrap describes none, or not what is
    /// in batches.
    pub fn needs_chunk_info(&self, blob: BlobIndex) -> bool {
        let is_batched = |blob: &Blob| blob.features & crate::layout::flags::blob::BATCH != 0;
        let blob = self.blobs.get(usize::from(blob.0));
        blob.is_some_and(|blob| blob.meta.is_some() && (!self.has_chunk_table() || is_batched(blob)))
    }

    /// A chunk. The first call for a bootstrap whose chunk table is not sorted by blob and index, such as nydus-image
    /// writes, sorts an index of 4 bytes a chunk.
    ///
    /// # Errors
    ///
    /// When nothing is known of the chunk, or what is known is impossible.
    pub fn chunk(&self, blob: BlobIndex, chunk: ChunkIndex) -> Result<Chunk, ReadError> {
        let index = usize::from(blob.0);
        let properties = self.blobs.get(index).ok_or(ReadError::NoSuchBlob(blob.0))?;
        if let Some(meta) = &self.metas[index] {
            let known = meta.chunk(chunk).map_err(|source| ReadError::ChunkInfo { blob: blob.0, source })?;
            // Without blob.digest, the digest is the chunk table's.
            let digest = match known.digest {
                Some(digest) => digest,
                None => self.table_chunk(properties, blob, chunk)?.digest,
            };
            return Ok(known.with_digest(digest));
        }
        let found = self.table_chunk(properties, blob, chunk)?;
        match found.batch {
            Some(_) => Err(ReadError::NeedsChunkInfo { blob: blob.0 }),
            None => Ok(found),
        }
    }

    /// A chunk as the bootstrap itself describes it, without what [`set_chunk_info`](Self::set_chunk_info) gave. Of a
    /// batch member, sizes and batch are not known here.
    ///
    /// # Errors
    ///
    /// When the bootstrap does not describe it, or what it says is impossible.
    pub(crate) fn described_chunk(&self, blob: BlobIndex, chunk: ChunkIndex) -> Result<Chunk, ReadError> {
        let properties = self.blobs.get(usize::from(blob.0)).ok_or(ReadError::NoSuchBlob(blob.0))?;
        self.table_chunk(properties, blob, chunk)
    }

    fn table_chunk(&self, properties: &Blob, blob: BlobIndex, chunk: ChunkIndex) -> Result<Chunk, ReadError> {
        self.format.chunk(&self.data, properties, blob, chunk)
    }

    /// What is known of a file of any type, without its content.
    ///
    /// # Errors
    ///
    /// When the inode lies outside the bootstrap or is impossible.
    pub fn inode(&self, nid: Nid) -> Result<Inode, ReadError> {
        self.format.inode(&self.data, nid)
    }

    /// The entry of a directory; `.` and `..` are entries too.
    ///
    /// # Errors
    ///
    /// When `directory` is none, or is broken where the name would be.
    pub fn lookup(&self, directory: Nid, name: &[u8]) -> Result<Option<Nid>, ReadError> {
        self.format.lookup(&self.data, directory, name)
    }

    /// Follows the names of a path from the root, without following symbolic links. Empty names and `.` stay where they
    /// are, so `/` and the empty path are the root.
    ///
    /// # Errors
    ///
    /// As [`lookup`](Self::lookup); a path below what is no directory does not exist.
    pub fn lookup_path(&self, path: &[u8]) -> Result<Option<Nid>, ReadError> {
        let mut at = self.root();
        for name in path.split(|&byte| byte == b'/').filter(|name| !matches!(*name, b"" | b".")) {
            match self.lookup(at, name) {
                Ok(Some(found)) => at = found,
                Ok(None) | Err(ReadError::NotADirectory(_)) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(at))
    }

    /// The directory above; the root's is the root.
    ///
    /// # Errors
    ///
    /// When `directory` is none, or is broken.
    pub fn parent(&self, directory: Nid) -> Result<Nid, ReadError> {
        let missing = ReadError::corrupt("directory", At::Number(directory.0), "an entry named '..'");
        self.lookup(directory, b"..")?.ok_or(missing)
    }

    /// The entries of a directory in byte order, without `.` and `..`, from where `offset` says: 0, or what an entry
    /// said comes next.
    ///
    /// # Errors
    ///
    /// When `directory` is none; what is broken inside it shows while iterating, and ends it.
    pub fn read_dir(&self, directory: Nid, offset: u64) -> Result<Directory<'_>, ReadError> {
        self.format.read_dir(&self.data, directory, offset)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    ///
    /// When `nid` is none, or is broken.
    pub fn read_link(&self, nid: Nid) -> Result<&[u8], ReadError> {
        self.format.read_link(&self.data, nid)
    }

    /// The extended attributes of a file of any type, by full name, without those that [no file of its type
    /// has](crate::xattr::fits): other tools store `user.*` of symbolic links too.
    ///
    /// # Errors
    ///
    /// When they are broken.
    pub fn xattrs(&self, nid: Nid) -> Result<Xattrs, ReadError> {
        let mut xattrs = self.stored_xattrs(nid)?;
        if !xattrs.is_empty() {
            let kind = self.inode(nid)?.kind;
            xattrs.retain(|name, _| crate::xattr::fits(kind, name));
        }
        Ok(xattrs)
    }

    /// All extended attributes that are stored for a file.
    pub(crate) fn stored_xattrs(&self, nid: Nid) -> Result<Xattrs, ReadError> {
        self.format.xattrs(&self.data, nid)
    }

    /// Where the bytes of a range of a regular file are, in order. The range is cut at the end of the file.
    ///
    /// # Errors
    ///
    /// When `nid` is no regular file; what is broken shows while iterating, and ends it.
    pub fn chunks(&self, nid: Nid, range: Range<u64>) -> Result<Pieces<'_>, ReadError> {
        self.format.pieces(&self.data, nid, range, self.blobs.len())
    }

    /// The least number of bytes that the entries of a directory take here. Those of different directories do not
    /// overlap, so whoever reads many can tell a bootstrap that repeats itself.
    ///
    /// # Errors
    ///
    /// When `directory` is none.
    pub fn directory_size(&self, directory: Nid) -> Result<u64, ReadError> {
        self.format.directory_size(&self.data, directory)
    }

    /// The bytes that an inode takes with its extended attributes. As [`directory_size`](Self::directory_size), those of
    /// different inodes do not overlap.
    ///
    /// # Errors
    ///
    /// When the inode lies outside the bootstrap or is impossible.
    pub(crate) fn inode_size(&self, nid: Nid) -> Result<u64, ReadError> {
        self.format.inode_size(&self.data, nid)
    }

    /// All chunks that the bootstrap itself describes.
    pub(crate) fn described_chunks(&self) -> Result<DescribedChunks<'_>, ReadError> {
        self.format.described(&self.data, &self.blobs)
    }
}
