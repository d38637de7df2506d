//! Somebody who waits for chunks.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use rafs::blob::{Chunk, ChunkIndex};

use super::message::ChunkKey;
use super::outage::Until;
use super::read::ReadError;
use crate::cache::CachedBlob;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// A chunk that is wanted in the cache.
#[derive(Clone, Debug)]
pub struct Want {
    /// The blob that holds it.
    pub blob: Arc<CachedBlob>,
    /// Its index there.
    pub chunk: ChunkIndex,
}

impl Want {
    pub(super) fn key(&self) -> ChunkKey {
        ChunkKey { blob: self.blob.id(), generation: self.blob.generation(), chunk: self.chunk }
    }
}

/// A chunk that was verified, and that the cache had no room for, or that could not be read there.
#[derive(Clone, Debug)]
pub(super) struct Loose {
    pub(super) key: ChunkKey,
    /// Where it starts in the uncompressed blob.
    pub(super) offset: u64,
    pub(super) bytes: Arc<[u8]>,
}

impl Loose {
    pub(super) fn new(key: ChunkKey, chunk: &Chunk, bytes: &[u8]) -> Self {
        Self { key, offset: chunk.uncompressed_offset, bytes: bytes.into() }
    }
}

/// What is called once, when all chunks are there or one fails; with those that are not to be read in the cache.
pub(super) type Done = Box<dyn FnOnce(Result<Vec<Loose>, ReadError>) + Send>;

/// Who waits: readers go before all else.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Urgency {
    /// A program stands still meanwhile.
    Reader,
    /// The same once more: what was in the cache could not be read there, so it takes the bytes of what comes. A disk that stays
    /// bad costs a read one fetch of a chunk, and of one that was not there a second.
    Reread,
    /// Nobody does: it gives way to readers, and nothing is tried again for it alone.
    Idle,
}

/// Waits until all of some chunks are there, one fails, or its time is over.
pub(super) struct Waiter {
    /// Chunks that are still missing.
    missing: AtomicUsize,
    until: Until,
    urgency: Urgency,
    loose: Mutex<Vec<Loose>>,
    /// Taken by whoever answers first.
    done: Mutex<Option<Done>>,
}

impl Waiter {
    pub(super) fn new(missing: usize, until: Until, urgency: Urgency, done: Done) -> Self {
        Self {
            missing: AtomicUsize::new(missing),
            until,
            urgency,
            loose: Mutex::default(),
            done: Mutex::new(Some(done)),
        }
    }

    /// When its time is over: later, if there is no worker meanwhile.
    pub(super) fn until(&self) -> Instant {
        self.until.time()
    }

    /// Whether a program stands still meanwhile.
    pub(super) fn is_reader(&self) -> bool {
        self.urgency != Urgency::Idle
    }

    /// Whether it is to have the bytes of what comes, wherever else they are.
    pub(super) fn takes_bytes(&self) -> bool {
        self.urgency == Urgency::Reread
    }

    /// One of the missing chunks is there; the last one answers.
    pub(super) fn arrived(&self) {
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(done) = self.take()
        {
            done(Ok(std::mem::take(&mut *self.loose())));
        }
    }

    /// One of the missing chunks is there, but is not to be read in the cache.
    pub(super) fn arrived_loose(&self, loose: Loose) {
        self.loose().push(loose);
        self.arrived();
    }

    fn loose(&self) -> MutexGuard<'_, Vec<Loose>> {
        self.loose.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers with an error, unless that was done before.
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
