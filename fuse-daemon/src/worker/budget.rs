//! Memory for stored bytes, counted when they come.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::sources::Source;

/// What all transfers share.
pub(super) struct Budget {
    limit: usize,
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
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: Mutex::new(0), freed: Notify::new() })
    }

    /// Waits until an extent may arrive from `source`. While the memory is full each backend has one all the same: what
    /// fills it may belong to backends that deliver no more.
    pub(super) async fn turn(self: &Arc<Self>, source: &Arc<Source>) -> Turn {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From here on nothing is missed that is freed.
            freed.as_mut().enable();
            if self.try_turn(source) {
                return Turn { budget: Arc::clone(self), source: Arc::clone(source) };
            }
            freed.await;
        }
    }

    fn try_turn(&self, source: &Source) -> bool {
        // The lock is over both numbers.
        let used = self.lock();
        let mut receiving = source.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        let free = *used < self.limit || *receiving == 0;
        *receiving += usize::from(free);
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
        *self.source.receiving.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.budget.freed.notify_waiters();
    }
}
