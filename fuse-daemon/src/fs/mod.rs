//! The file system of an image, without FUSE: from inode numbers to attributes, names and bytes.

mod attributes;
mod first_reads;
mod gate;
mod libraries;
mod linked;
mod missing;
mod names;
mod program;
mod xattrs;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rafs::blob::{BlobIndex, ChunkIndex};
use rafs::bootstrap::{Bootstrap, Inode, Nid, ReadError as BootstrapError};
use rafs::layout::v6::FileType;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use attributes::{Attributes, Ino};
pub use gate::{Asker, Clearance, Gates, Later, Refusal, Told};

use crate::cache::{CachedBlob, Lease};
use crate::front::{Front, Piece, ReadError, Want};
use first_reads::FirstReads;

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
    /// A blob is not the image's to read, as far as its own sources say.
    #[error("none of the image's own sources says that it has the blob: {0}")]
    Unanswered(Arc<str>),
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
    gates: Arc<Gates>,
    front: Arc<Front>,
    first_reads: FirstReads,
    /// Who is told of programs when they start.
    programs: mpsc::Sender<StartedFile>,
    /// Whether it was logged that the bootstrap is damaged.
    damage_is_known: AtomicBool,
    /// Whether it is known that no file has extended attributes.
    has_no_xattrs: AtomicBool,
}

/// Chunks of an image, counted.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Completeness {
    /// Those that are in the cache.
    pub ready: u64,
    /// All that the image's bootstrap describes.
    pub all: u64,
}

/// A program that was begun to be read, or a library.
#[derive(Clone, Copy, Debug)]
pub struct StartedFile {
    /// Its file.
    pub file: Nid,
    /// Whether it is one that is read nearly whole.
    pub is_read_whole: bool,
}

/// Smaller programs come with their first read, or the second.
const PROGRAM_BYTES_MIN: u64 = 2 << 20;

/// Offsets of a directory below this are those of `.` and `..`, which a bootstrap's listing leaves out.
const DOTS: u64 = 2;

impl FileSystem {
    /// The file system of `bootstrap`, whose blobs are cached in `blobs` and read through `gates`, in the same order. `programs`
    /// is told of programs that are begun to be read.
    pub fn new(
        bootstrap: Arc<Bootstrap>,
        blobs: Vec<Lease>,
        gates: Arc<Gates>,
        front: Arc<Front>,
        programs: mpsc::Sender<StartedFile>,
    ) -> Self {
        let first_reads = FirstReads::default();
        Self {
            bootstrap,
            blobs,
            gates,
            front,
            first_reads,
            programs,
            damage_is_known: AtomicBool::new(false),
            has_no_xattrs: AtomicBool::new(false),
        }
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
        self.sound(|bootstrap| {
            let found = bootstrap.lookup(self.nid(directory), name)?;
            found.map(|nid| self.attributes_of(nid)).transpose()
        })
    }

    /// The attributes of a file.
    ///
    /// # Errors
    ///
    /// [`FsError`].
    pub fn attributes(&self, ino: Ino) -> Result<Attributes, FsError> {
        self.sound(|_| self.attributes_of(self.nid(ino)))
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    ///
    /// [`FsError`].
    pub fn read_link(&self, ino: Ino) -> Result<Box<[u8]>, FsError> {
        // Copied before it is known to be right, rather than read by the kernel after that.
        self.sound(|bootstrap| Ok(bootstrap.read_link(self.nid(ino))?.into()))
    }

    /// Shows the entries of a directory from `offset` on, `.` and `..` first, until `visit` says that it has enough.
    ///
    /// # Errors
    ///
    /// [`FsError`]; then nothing that was shown counts.
    pub fn read_directory(
        &self,
        directory: Ino,
        offset: u64,
        visit: impl FnMut(Entry<'_>) -> bool,
    ) -> Result<(), FsError> {
        self.sound(|bootstrap| self.show_directory(bootstrap, self.nid(directory), offset, visit))
    }

    fn show_directory(
        &self,
        bootstrap: &Bootstrap,
        nid: Nid,
        offset: u64,
        mut visit: impl FnMut(Entry<'_>) -> bool,
    ) -> Result<(), FsError> {
        if offset < 1 {
            let attributes = self.attributes_of(nid)?;
            if visit(Entry { name: b".", attributes, next_offset: 1 }) {
                return Ok(());
            }
        }
        if offset < DOTS {
            let attributes = self.attributes_of(bootstrap.parent(nid)?)?;
            if visit(Entry { name: b"..", attributes, next_offset: DOTS }) {
                return Ok(());
            }
        }
        for entry in bootstrap.read_dir(nid, offset.saturating_sub(DOTS))? {
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
        self.sound(|bootstrap| bootstrap.xattrs(self.nid(ino))?.remove(name).ok_or(FsError::NoXattr))
    }

    /// Finds out whether there are extended attributes at all. Walks through the image.
    pub fn look_for_xattrs(&self) {
        // One that is damaged is told of by who reads it.
        let has_none = self.sound(|bootstrap| Ok(!xattrs::has_any(bootstrap)?)).unwrap_or_default();
        self.has_no_xattrs.store(has_none, Ordering::Relaxed);
    }

    /// Whether no file has extended attributes, as far as it was found out.
    pub fn has_no_xattrs(&self) -> bool {
        self.has_no_xattrs.load(Ordering::Relaxed)
    }

    /// The names of all extended attributes, each ended by NUL.
    ///
    /// # Errors
    ///
    /// [`FsError`].
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        self.sound(|bootstrap| {
            let names = bootstrap.xattrs(self.nid(ino))?.into_keys();
            Ok(names.flat_map(|name| name.into_vec().into_iter().chain([0])).collect())
        })
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
        let counters = Arc::clone(self.front.counters());
        let done = move |result: Result<&[u8], FsError>| {
            if result.is_err() {
                counters.failed();
            }
            done(result);
        };
        let nid = self.nid(ino);
        let range = offset..offset.saturating_add(u64::from(size));
        let read = self.sound(|bootstrap| {
            let starts = offset == 0 && size as usize >= program::HEAD_BYTES;
            let is_large = starts && is_large_program(&bootstrap.inode(nid)?);
            Ok((self.pieces(bootstrap, nid, range)?, starts.then_some(is_large)))
        });
        let ((pieces, closed), starts) = match read {
            Ok(read) => read,
            Err(error) => return done(Err(error)),
        };
        self.first_reads.note(nid);
        let programs = starts.map(|is_large| (is_large, self.programs.clone()));
        let answer = move |result: Result<&[u8], FsError>| {
            if let (Some((is_large, programs)), Ok(bytes)) = (programs, &result)
                && program::is_one(bytes)
            {
                let is_read_whole = is_large && program::is_read_whole(bytes);
                // If so many start at once that they wait in line, this one is read as it goes.
                let _ = programs.try_send(StartedFile { file: nid, is_read_whole });
            }
            done(result);
        };
        if closed.is_empty() {
            return self.front.read(pieces, move |result| answer(result.map_err(FsError::from)));
        }
        // One deadline for both: that the blobs may be read, and that they are.
        let (until, front) = (self.front.deadline(), Arc::clone(&self.front));
        self.gates.wait_for(closed, until.clone(), move |allowed| match allowed {
            Ok(()) => front.read_by(pieces, until, move |result| answer(result.map_err(FsError::from))),
            Err(refusal) => answer(Err(FsError::Unanswered(refusal.reason))),
        });
    }

    /// The pieces of a read, and the blobs among them that have not been answered for.
    fn pieces(
        &self,
        bootstrap: &Bootstrap,
        nid: Nid,
        range: Range<u64>,
    ) -> Result<(Vec<Piece>, Vec<usize>), FsError> {
        let (mut pieces, mut closed) = (Vec::new(), Vec::new());
        for piece in bootstrap.chunks(nid, range)? {
            let piece = piece?;
            // Where the chunk is said to be, rather than the file's own address of it: the worker puts it there.
            let chunk = bootstrap.chunk(piece.blob, piece.chunk)?;
            let end = u64::from(piece.offset_in_chunk) + u64::from(piece.len);
            if end > u64::from(chunk.uncompressed_size) {
                return Err(FsError::OutsideChunk { end, size: chunk.uncompressed_size });
            }
            let index = usize::from(piece.blob.0);
            if !self.gates.is_open(index) && !closed.contains(&index) {
                closed.push(index);
            }
            pieces.push(Piece::Chunk {
                blob: Arc::clone(self.blob(piece.blob)?),
                chunk: piece.chunk,
                offset: chunk.uncompressed_offset.saturating_add(u64::from(piece.offset_in_chunk)),
                len: piece.len as usize,
            });
        }
        Ok((pieces, closed))
    }

    fn blob(&self, index: BlobIndex) -> Result<&Arc<CachedBlob>, FsError> {
        let lease = self.blobs.get(usize::from(index.0));
        Ok(lease.ok_or(BootstrapError::NoSuchBlob(index.0))?.blob())
    }

    /// How much of the image is in the cache.
    pub fn completeness(&self) -> Completeness {
        let mut sum = Completeness::default();
        for (index, lease) in self.blobs.iter().enumerate() {
            let described = (0..self.chunk_count(index)).map(ChunkIndex);
            for chunk in described.filter(|chunk| lease.blob().describe(*chunk).is_some()) {
                sum.all += 1;
                sum.ready += u64::from(lease.blob().is_ready(chunk));
            }
        }
        sum
    }

    fn chunk_count(&self, blob: usize) -> u32 {
        u8::try_from(blob).map_or(0, |index| self.bootstrap.chunk_count(BlobIndex(index)))
    }

    /// Brings chunks into the cache that nobody waits for, see [`Front::ensure_idle`], if they are the mount's to read.
    pub fn ensure_idle(&self, wanted: Vec<Want>, done: impl FnOnce(Result<(), FsError>) + Send + 'static) {
        let is_closed = |(index, lease): (usize, &Lease)| {
            let is_wanted = || wanted.iter().any(|want| Arc::ptr_eq(&want.blob, lease.blob()));
            (!self.gates.is_open(index) && is_wanted()).then_some(index)
        };
        let closed: Vec<usize> = self.blobs.iter().enumerate().filter_map(is_closed).collect();
        let front = Arc::clone(&self.front);
        self.gates.wait_for_idle(closed, front.deadline(), move |allowed| match allowed {
            Ok(()) => front.ensure_idle(wanted, move |result| done(result.map_err(FsError::from))),
            Err(refusal) => done(Err(FsError::Unanswered(refusal.reason))),
        });
    }

    /// Whether the cache did not take the last chunk that came.
    pub(crate) fn is_cache_refusing(&self) -> bool {
        self.front.is_refused()
    }

    /// The regular files that the image's prefetch table names, and those in directories that it names, in order.
    ///
    /// # Errors
    ///
    /// [`FsError::Bootstrap`].
    pub fn prefetch_table(&self) -> Result<Vec<Nid>, FsError> {
        self.sound(|bootstrap| Ok(names::regular_files(bootstrap, &bootstrap.prefetch()?)?))
    }

    /// A search for the path of a file, of several names one; none where the bootstrap is damaged. Walks through the image, and
    /// holds its bootstrap alone: the image's blobs are given back while it looks.
    pub fn path_search(&self, ino: Ino) -> impl FnOnce() -> Option<Box<[u8]>> + Send + use<> {
        let (bootstrap, nid) = (Arc::clone(&self.bootstrap), self.nid(ino));
        move || {
            let path = names::paths(&bootstrap, &[nid]).ok()?.pop();
            // What could not be read may have been zeros.
            bootstrap.sound().ok()?;
            path
        }
    }

    /// The paths of the files that were read, in the order in which each was first: what a next start reads first.
    ///
    /// # Errors
    ///
    /// [`FsError::Bootstrap`].
    pub fn trace(&self) -> Result<Vec<Box<[u8]>>, FsError> {
        self.sound(|bootstrap| Ok(names::paths(bootstrap, &self.first_reads.files())?))
    }

    /// What `read` makes of the bootstrap, unless some of it could not be read by then: the rest may have been zeros.
    fn sound<T>(&self, read: impl FnOnce(&Bootstrap) -> Result<T, FsError>) -> Result<T, FsError> {
        let result = read(&self.bootstrap);
        if let Err(damaged) = self.bootstrap.sound() {
            if !self.damage_is_known.swap(true, Ordering::Relaxed) {
                tracing::error!(%damaged, "an image cannot be read");
            }
            return Err(damaged.into());
        }
        result
    }

    /// Lets go of the memory of what was looked at; it can be looked at again.
    pub fn let_go(&self) {
        self.bootstrap.let_go();
    }

    /// Totals of the file system.
    pub fn totals(&self) -> Totals {
        let sizes = self.bootstrap.blobs().iter().map(|blob| blob.uncompressed_size);
        Totals { bytes: sizes.fold(0, u64::saturating_add), files: self.bootstrap.inode_count() }
    }
}

/// Whether a file may be a program that is worth more than one request.
fn is_large_program(inode: &Inode) -> bool {
    inode.kind == FileType::Regular && inode.permissions & 0o111 != 0 && inode.size >= PROGRAM_BYTES_MIN
}
