//! One read: the pieces it consists of, and its state while chunks are missing.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rafs::blob::ChunkIndex;

use super::{ChunkError, ChunkKey};
use crate::cache::CachedBlob;

/// Buffers larger than this are given back after use rather than kept by the thread: the kernel's largest read of
/// 1 MiB fits.
const BUFFER_KEPT_BYTES: usize = 1 << 20;

thread_local! {
    /// Each thread's buffer between cache file and kernel, so that reads allocate nothing.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A part of a read that lies in one chunk, or in none.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Bytes of a chunk.
    Chunk {
        /// The blob that holds it.
        blob: Arc<CachedBlob>,
        /// The chunk that has to be ready.
        chunk: ChunkIndex,
        /// Where the bytes start in the uncompressed blob.
        offset: u64,
        /// How many bytes.
        len: usize,
    },
    /// A hole: this many zeros.
    Zeros(usize),
}

impl Piece {
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Chunk { blob, chunk, .. } => blob.is_ready(*chunk),
            Self::Zeros(_) => true,
        }
    }

    /// The key of a piece that is not ready, hence of a chunk.
    pub(super) fn key(&self) -> Option<ChunkKey> {
        match self {
            Self::Chunk { blob, chunk, .. } => Some(ChunkKey { blob: blob.id(), chunk: *chunk }),
            Self::Zeros(_) => None,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Chunk { len, .. } | Self::Zeros(len) => *len,
        }
    }

    fn read(&self, buffer: &mut [u8]) -> Result<(), ReadError> {
        match self {
            Self::Chunk { blob, chunk, offset, .. } => {
                blob.read(buffer, *offset).map_err(|error| ReadError::Chunk {
                    key: ChunkKey { blob: blob.id(), chunk: *chunk },
                    source: ChunkError::Cache(error.to_string()),
                })
            }
            Self::Zeros(_) => {
                buffer.fill(0);
                Ok(())
            }
        }
    }
}

/// Why a read fails.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A chunk is not to be had.
    #[error("blob {} chunk {}: {source}", key.blob, key.chunk.0)]
    Chunk {
        /// Which.
        key: ChunkKey,
        /// Why.
        source: ChunkError,
    },
    /// The worker took too long.
    #[error("its chunks did not arrive within {0:?}")]
    Deadline(Duration),
}

type Done = Box<dyn FnOnce(Result<&[u8], ReadError>) + Send>;

/// A read that waits for chunks.
pub(super) struct Pending {
    pieces: Vec<Piece>,
    /// Chunks that are still missing.
    missing: AtomicUsize,
    /// Taken by whoever answers first.
    done: Mutex<Option<Done>>,
}

impl Pending {
    pub(super) fn new(pieces: Vec<Piece>, missing: usize, done: Done) -> Self {
        Self { pieces, missing: AtomicUsize::new(missing), done: Mutex::new(Some(done)) }
    }

    /// Whether the chunk, which is one of the read's, is in the cache now.
    pub(super) fn is_ready(&self, key: ChunkKey) -> bool {
        self.pieces.iter().filter(|piece| piece.key() == Some(key)).all(Piece::is_ready)
    }

    /// One of the missing chunks is there; with the last one the read is answered.
    pub(super) fn arrived(&self) {
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(done) = self.take()
        {
            read_now(&self.pieces, done);
        }
    }

    /// Answers with an error, unless the read was answered before.
    pub(super) fn fail(&self, error: ReadError) {
        if let Some(done) = self.take() {
            done(Err(error));
        }
    }

    pub(super) fn is_answered(&self) -> bool {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn take(&self) -> Option<Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Answers from the cache, all pieces being there.
pub(super) fn read_now(pieces: &[Piece], done: impl FnOnce(Result<&[u8], ReadError>)) {
    BUFFER.with_borrow_mut(|buffer| {
        done(fill(pieces, buffer).map(|()| buffer.as_slice()));
        if buffer.capacity() > BUFFER_KEPT_BYTES {
            *buffer = Vec::new();
        }
    });
}

fn fill(pieces: &[Piece], buffer: &mut Vec<u8>) -> Result<(), ReadError> {
    let total: usize = pieces.iter().map(Piece::len).sum();
    // Only what is beyond the last read's length is zeroed here; `read` overwrites all.
    buffer.resize(total, 0);
    let mut rest = buffer.as_mut_slice();
    for piece in pieces {
        let (part, behind) = rest.split_at_mut(piece.len());
        piece.read(part)?;
        rest = behind;
    }
    Ok(())
}
