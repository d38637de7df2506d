//! Why a layer could not be built.

use std::fmt;
use std::io;

use crate::blob::stream::FinishError;
use crate::compress::CompressError;
use crate::digest::DigestAlgorithm;
use crate::layout::{CHUNK_SIZES, MIN_CHUNK_SIZE, NAME_LIMIT_BYTES, PATH_LIMIT_BYTES};
use crate::source::SourceError;

/// A path as its source has it, any bytes, to be shown to a person.
#[derive(Clone, Eq, PartialEq)]
pub struct SourcePath(pub Vec<u8>);

impl fmt::Debug for SourcePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Characters shown of a path: enough to find it, whatever its length.
        const SHOWN: usize = 400;
        let text = String::from_utf8_lossy(&self.0);
        if text.chars().count() <= SHOWN {
            return write!(f, "{text:?}");
        }
        let start: String = text.chars().take(SHOWN).collect();
        write!(f, "{start:?}…")
    }
}

impl From<&[u8]> for SourcePath {
    fn from(path: &[u8]) -> Self {
        Self(path.to_vec())
    }
}

/// What is wrong with the path of an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PathProblem {
    /// A name in it is longer than a file system holds.
    #[error("a name in it has {length} bytes: at most {} are possible", NAME_LIMIT_BYTES)]
    NameTooLong {
        /// Size of the name in bytes.
        length: usize,
    },
    /// It is longer than a system call takes.
    #[error("it has {length} bytes: at most {} are possible", PATH_LIMIT_BYTES)]
    TooLong {
        /// Size of the path in bytes.
        length: usize,
    },
    /// It has a NUL byte.
    #[error("it contains a NUL byte")]
    Nul,
    /// It leads through symbolic links for ever, or nearly so.
    #[error("it leads through too many symbolic links")]
    TooManyLinks,
    /// It and the entries before it lack so many parents that no archive of files can be meant.
    #[error("it and the entries before it lack far more parent directories than there are entries")]
    TooManyMissing,
    /// Something that is no directory is named like the root.
    #[error("it names the root, and the entry is not a directory")]
    RootIsNoDirectory,
}

/// Why a layer could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The chunk size is impossible.
    #[error("chunk size {chunk_size} is impossible: expected {}", CHUNK_SIZES)]
    ChunkSize {
        /// The size asked for, in bytes.
        chunk_size: u32,
    },
    /// The batch size is impossible.
    #[error(
        "batch size {batch_size} is impossible: expected a power of two from {} to the chunk size {chunk_size}",
        MIN_CHUNK_SIZE
    )]
    BatchSize {
        /// The size asked for, in bytes.
        batch_size: u32,
        /// The chunk size in bytes.
        chunk_size: u32,
    },
    /// Blobs with batches have chunk information whose sizes end just below the largest chunk size.
    #[error("a batch size was given with chunks of {chunk_size} bytes: batches need a smaller chunk size")]
    BatchChunkSize {
        /// The chunk size in bytes.
        chunk_size: u32,
    },
    /// Batches need a compressor.
    #[error("a batch size was given and no compressor: batches are always compressed")]
    BatchWithoutCompressor,
    /// The chunk dictionary cannot be used for this layer.
    #[error(
        "the chunk dictionary has chunks of {found_size} bytes with {found_digester} digests: \
         this layer needs {chunk_size} bytes and {digester}"
    )]
    Dictionary {
        /// Chunk size of the dictionary in bytes.
        found_size: u32,
        /// Digest of the dictionary.
        found_digester: DigestAlgorithm,
        /// Chunk size of the layer in bytes.
        chunk_size: u32,
        /// Digest of the layer.
        digester: DigestAlgorithm,
    },
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// An entry's path is impossible.
    #[error("entry {path:?}: {problem}")]
    Path {
        /// The path in the source.
        path: SourcePath,
        /// What is wrong.
        problem: PathProblem,
    },
    /// A hard link's target exists nowhere in the source.
    #[error("entry {path:?} is a hard link to {target:?}, which does not exist")]
    LinkTarget {
        /// The link.
        path: SourcePath,
        /// What it links to.
        target: SourcePath,
    },
    /// A hard link's target is a directory.
    #[error("entry {path:?} is a hard link to {target:?}, which is a directory")]
    LinkToDirectory {
        /// The link.
        path: SourcePath,
        /// What it links to.
        target: SourcePath,
    },
    /// A file's content ended early.
    #[error("content of {path:?} ended after {found} of {expected} bytes")]
    ShortContent {
        /// The file.
        path: SourcePath,
        /// Its size in bytes.
        expected: u64,
        /// The bytes that came.
        found: u64,
    },
    /// Compression failed.
    #[error(transparent)]
    Compress(#[from] CompressError),
    /// The layer has more chunks than a blob can have.
    #[error("the layer has more than {limit} different chunks: use a larger chunk size")]
    TooManyChunks {
        /// The most that are possible.
        limit: u32,
    },
    /// The layer's files are too large together.
    #[error("with {path:?}, the layer's files have more than {limit} bytes together, holes included")]
    ContentTooLarge {
        /// The file with which they are.
        path: SourcePath,
        /// The most that is read, in bytes.
        limit: u64,
    },
    /// The layer's chunk data is larger than a blob can be.
    #[error("the layer's compressed content exceeds {limit} bytes, the most that a blob can have")]
    BlobTooLarge {
        /// The most that is possible, in bytes.
        limit: u64,
    },
    /// The blob could not be written.
    #[error("cannot write the blob at offset {offset}: {source}")]
    Write {
        /// Offset in bytes in the blob stream.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The blob's tail could not be written.
    #[error(transparent)]
    Tail(#[from] FinishError),
    /// Another part of the build failed; its error is the one to report.
    #[error("the build was stopped")]
    Stopped,
}
