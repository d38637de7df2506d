//! What the worker is busy with, so that each chunk is fetched once, and what failed lately.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::front::{ChunkError, ChunkKey};

/// Failures that are remembered at most; beyond, the memory is cleared, at the price of some repeated attempts.
const FAILURES_LIMIT: usize = 4096;

/// See the module.
pub(super) struct State {
    inner: Mutex<Inner>,
}

pub(super) struct Inner {
    in_flight: HashMap<ChunkKey, Work>,
    failed: HashMap<ChunkKey, (Instant, ChunkError)>,
    memory: Duration,
    patience: Duration,
}

/// A chunk being worked on.
struct Work {
    /// Whether a reader waits for it.
    demanded: bool,
    since: Instant,
}

/// What happened when a chunk was entered.
pub(super) enum Entry {
    /// It is the caller's to work on.
    New,
    /// It is being worked on.
    InFlight,
    /// It failed lately, and is not to be tried again yet.
    Failed(ChunkError),
}

impl State {
    /// Failures are remembered for `memory`. Work that has not come to an end after `patience` was lost to a bug, and
    /// may be begun anew.
    pub(super) fn new(memory: Duration, patience: Duration) -> Self {
        let inner = Inner { in_flight: HashMap::new(), failed: HashMap::new(), memory, patience };
        Self { inner: Mutex::new(inner) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Enters a chunk, for a reader (`demanded`) or ahead of any.
    pub(super) fn enter(&mut self, key: ChunkKey, demanded: bool) -> Entry {
        if let Some(work) = self.in_flight.get_mut(&key).filter(|work| work.since.elapsed() < self.patience) {
            work.demanded |= demanded;
            return Entry::InFlight;
        }
        if let Some((since, error)) = self.failed.get(&key) {
            if since.elapsed() < self.memory {
                return Entry::Failed(error.clone());
            }
            self.failed.remove(&key);
        }
        self.in_flight.insert(key, Work { demanded, since: Instant::now() });
        Entry::New
    }

    /// Whether nobody works on the chunk and it has not failed lately.
    pub(super) fn is_free(&self, key: ChunkKey) -> bool {
        !self.in_flight.contains_key(&key) && !self.failed.contains_key(&key)
    }

    /// Whether a reader waits for the chunk.
    pub(super) fn is_demanded(&self, key: ChunkKey) -> bool {
        self.in_flight.get(&key).is_some_and(|work| work.demanded)
    }

    /// Takes an entry back.
    pub(super) fn leave(&mut self, key: ChunkKey) {
        self.in_flight.remove(&key);
    }

    /// Work on the chunk is over.
    pub(super) fn conclude(&mut self, key: ChunkKey, error: Option<&ChunkError>) {
        let demanded = self.in_flight.remove(&key).is_some_and(|work| work.demanded);
        // A failure ahead of any reader is no reason to refuse the first one.
        if let (Some(error), true) = (error, demanded) {
            if self.failed.len() >= FAILURES_LIMIT {
                self.failed.clear();
            }
            self.failed.insert(key, (Instant::now(), error.clone()));
        }
    }
}
