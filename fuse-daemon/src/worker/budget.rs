//! Memory for stored bytes, counted when they come.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::sources::Source;

/// What all transfers share.
pub(super) struct Budget {
    limit: usize,
    /// What may be arriving from one backend: should it deliver no more, the rest is left to the others.
    share: usize,
    used: Mutex<usize>,
    freed: Notify,
}

/// Stored bytes that arrived, until they are decoded.
pub(super) struct Memory {
    budget: Arc<Budget>,
    bytes: usize,
}

/// A backend's right to have an extent arrive.
pub(super) struct Turn {
    budget: Arc<Budget>,
    source: Arc<Source>,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, share: limit / 2, used: Mutex::new(0), freed: Notify::new() })
    }

    /// Waits until an extent of so many bytes may arrive from `source`. While the memory is full each backend has one all the same: what
    /// fills it may belong to backends that deliver no more.
    pub(super) async fn turn(self: &Arc<Self>, source: &Arc<Source>, bytes: usize) -> Turn {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From here on nothing is missed that is freed.
            freed.as_mut().enable();
            if self.try_turn(source, bytes) {
                return Turn { budget: Arc::clone(self), source: Arc::clone(source), bytes };
            }
            freed.await;
        }
    }

    fn try_turn(&self, source: &Source, bytes: usize) -> bool {
        // The lock is over both numbers.
        let used = self.lock();
        let mut receiving = source.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = *used < self.limit && receiving.saturating_add(bytes) <= self.share;
        let free = has_room || *receiving == 0;
        *receiving += if free { bytes } else { 0 };
        free
    }

    pub(super) fn memory(self: &Arc<Self>) -> Memory {
        Memory { budget: Arc::clone(self), bytes: 0 }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, usize> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    /// So many bytes arrived.
    pub(super) fn grow(&mut self, bytes: usize) {
        *self.budget.lock() += bytes;
        self.bytes += bytes;
    }

    /// Takes over so many of the bytes.
    pub(super) fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { budget: Arc::clone(&self.budget), bytes }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        *self.budget.lock() -= self.bytes;
        self.budget.freed.notify_waiters();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.source.receiving.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
        self.budget.freed.notify_waiters();
    }
}
