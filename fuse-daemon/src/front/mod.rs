//! What the kernel waits on: it answers reads from the cache, and asks the worker for chunks that are missing.
//!
//! ```text
//!   read ──> all chunks ready? ──yes──> read the cache file, answer
//!                   │ no
//!                   └──> outstanding (by blob and chunk) ──> Worker::request
//!                                │                                 │
//!            answer <── last chunk there, failed, or deadline <── Responses::finished
//! ```
//!
//! The front does no network, no decoding, and never blocks a kernel-facing thread on the worker: a read that has to
//! wait is put aside, and answered by whoever completes it.

mod deadline;
mod read;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rafs::blob::ChunkIndex;

pub use read::{Piece, ReadError};

use crate::control::BlobId;
use deadline::Deadlines;
use read::{Pending, read_now};

/// A chunk, by blob and index: what front and worker talk about.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ChunkKey {
    /// The blob.
    pub blob: BlobId,
    /// The chunk in it.
    pub chunk: ChunkIndex,
}

/// The fallible half: brings chunks into the cache.
pub trait Worker: Send + Sync {
    /// Queues chunks and returns at once. Each is answered by one [`Responses::finished`], sooner or later; a chunk
    /// that is asked for again before that may be answered once for both. The answer may come during the call.
    fn request(&self, chunks: &[ChunkKey]);
}

/// Where the worker reports to.
pub trait Responses: Send + Sync {
    /// The chunk is in the cache and its bit is set, or that failed. Chunks that nobody asked for may be reported.
    fn finished(&self, chunk: ChunkKey, outcome: Result<(), ChunkError>);
}

/// Why the worker could not bring a chunk into the cache.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ChunkError {
    /// The backend did not deliver it.
    #[error("fetching it failed: {0}")]
    Fetch(String),
    /// What the backend delivered is not the chunk.
    #[error("what was fetched is corrupt: {0}")]
    Corrupt(String),
    /// It could not be written to the cache.
    #[error("the cache file cannot be written or read: {0}")]
    Cache(String),
    /// No mounted image names the blob, or the blob has no such chunk.
    #[error("no mounted image has this chunk")]
    Unknown,
}

/// Reads that wait for a chunk.
type Waiters = Vec<Arc<Pending>>;

/// The front of all mounts.
pub struct Front {
    worker: RwLock<Arc<dyn Worker>>,
    outstanding: Mutex<HashMap<ChunkKey, Waiters>>,
    deadlines: Deadlines,
}

impl Front {
    /// A front that asks `worker`, and answers each read within `deadline`.
    pub fn new(worker: Arc<dyn Worker>, deadline: Duration) -> Self {
        Self {
            worker: RwLock::new(worker),
            outstanding: Mutex::default(),
            deadlines: Deadlines::new(deadline),
        }
    }

    /// Answers `done` with the bytes of `pieces`, one after the other: before returning if all are in the cache, else
    /// from another thread.
    pub fn read(&self, pieces: Vec<Piece>, done: impl FnOnce(Result<&[u8], ReadError>) + Send + 'static) {
        let mut missing: Vec<ChunkKey> =
            pieces.iter().filter(|piece| !piece.is_ready()).filter_map(Piece::key).collect();
        // Looked at once: chunks become ready at any time.
        if missing.is_empty() {
            return read_now(&pieces, done);
        }
        missing.sort_unstable();
        missing.dedup();
        let pending = Arc::new(Pending::new(pieces, missing.len(), Box::new(done)));
        self.deadlines.watch(&pending);
        self.enqueue(&missing, &pending);
    }

    fn enqueue(&self, missing: &[ChunkKey], pending: &Arc<Pending>) {
        let mut new = Vec::new();
        let mut arrived = 0;
        {
            let mut outstanding = self.lock();
            for &key in missing {
                // Looked at again under the lock: an answer that came since the first look will not come again. One
                // that comes after this look finds the read, since it takes the same lock.
                if pending.is_ready(key) {
                    arrived += 1;
                    continue;
                }
                outstanding
                    .entry(key)
                    .or_insert_with(|| {
                        new.push(key);
                        Waiters::new()
                    })
                    .push(Arc::clone(pending));
            }
        }
        for _ in 0..arrived {
            pending.arrived();
        }
        if !new.is_empty() {
            self.worker().request(&new);
        }
    }

    /// Puts another worker in the place of one that ended: it is asked for all that is outstanding.
    pub fn replace_worker(&self, worker: Arc<dyn Worker>) {
        *self.worker.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&worker);
        let outstanding: Vec<ChunkKey> = self.lock().keys().copied().collect();
        if !outstanding.is_empty() {
            worker.request(&outstanding);
        }
    }

    fn worker(&self) -> Arc<dyn Worker> {
        Arc::clone(&self.worker.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ChunkKey, Waiters>> {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Responses for Front {
    fn finished(&self, chunk: ChunkKey, outcome: Result<(), ChunkError>) {
        let Some(waiters) = self.lock().remove(&chunk) else { return };
        for read in waiters {
            match &outcome {
                Ok(()) => read.arrived(),
                Err(error) => read.fail(ReadError::Chunk { key: chunk, source: error.clone() }),
            }
        }
    }
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front").field("outstanding", &self.lock().len()).finish_non_exhaustive()
    }
}
