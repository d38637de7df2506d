//! Memory for stored bytes, counted when they come: of chunks until they are decoded, of what is brought whole until it is unpacked.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::sources::Source;

/// What all transfers share.
pub(super) struct Budget {
    limit: usize,
    /// What may be arriving from one backend: should it deliver no more, the rest is left to the others.
    share: usize,
    /// What of that may be held of what is brought whole, so that chunks always have the rest.
    whole_share: usize,
    used: Mutex<usize>,
    freed: Notify,
}

/// Bytes that arrived, until they are decoded or unpacked.
pub(super) struct Memory {
    budget: Arc<Budget>,
    bytes: usize,
    /// Beyond this nothing counts.
    most: usize,
}

/// What a turn is for.
#[derive(Clone, Copy)]
enum TurnKind {
    /// Chunks: the right ends when they have arrived.
    Extent,
    /// A range that is of no use until all of it is there: the right ends when it is done with.
    Whole,
}

/// Bytes that a backend has the right to have arrive.
#[derive(Default)]
pub(super) struct Receiving {
    extents: usize,
    wholes: usize,
}

impl Receiving {
    fn of(&mut self, kind: TurnKind) -> &mut usize {
        match kind {
            TurnKind::Extent => &mut self.extents,
            TurnKind::Whole => &mut self.wholes,
        }
    }
}

/// A backend's right to have something arrive.
pub(super) struct Turn {
    budget: Arc<Budget>,
    source: Arc<Source>,
    kind: TurnKind,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        let (share, whole_share) = (limit / 2, limit / 4);
        Arc::new(Self { limit, share, whole_share, used: Mutex::new(0), freed: Notify::new() })
    }

    /// Waits until an extent of so many bytes may arrive from `source`. While the memory is full each backend has one all the same: what
    /// fills it may belong to backends that deliver no more.
    pub(super) async fn turn(self: &Arc<Self>, source: &Arc<Source>, bytes: usize) -> Turn {
        self.wait(source, TurnKind::Extent, bytes).await
    }

    /// The same for something that takes so many bytes until it is done with. What is larger than a backend may hold comes alone.
    ///
    /// Who has one may not wait for another one.
    pub(super) async fn whole_turn(self: &Arc<Self>, source: &Arc<Source>, bytes: usize) -> Turn {
        self.wait(source, TurnKind::Whole, bytes).await
    }

    async fn wait(self: &Arc<Self>, source: &Arc<Source>, kind: TurnKind, bytes: usize) -> Turn {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From here on nothing is missed that is freed.
            freed.as_mut().enable();
            if self.try_turn(source, kind, bytes) {
                return Turn { budget: Arc::clone(self), source: Arc::clone(source), kind, bytes };
            }
            freed.await;
        }
    }

    fn try_turn(&self, source: &Source, kind: TurnKind, bytes: usize) -> bool {
        // The lock is over all numbers.
        let used = self.lock();
        let mut receiving = source.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        let share = match kind {
            TurnKind::Extent => self.share - receiving.wholes.min(self.whole_share),
            TurnKind::Whole => self.whole_share,
        };
        let held = receiving.of(kind);
        let has_room = *used < self.limit && held.saturating_add(bytes) <= share;
        let free = has_room || *held == 0;
        *held += if free { bytes } else { 0 };
        free
    }

    pub(super) fn memory(self: &Arc<Self>) -> Memory {
        self.memory_of_at_most(usize::MAX)
    }

    /// For what is brought whole. However large it is, it counts as no more than its backend may hold: others would stand still for it.
    pub(super) fn whole_memory(self: &Arc<Self>) -> Memory {
        self.memory_of_at_most(self.whole_share)
    }

    fn memory_of_at_most(self: &Arc<Self>, most: usize) -> Memory {
        Memory { budget: Arc::clone(self), bytes: 0, most }
    }

    /// What of so many bytes counts where they are brought whole.
    pub(super) fn counted_whole(&self, bytes: u64) -> u64 {
        bytes.min(self.whole_share as u64)
    }

    /// Bytes that count now.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        *self.lock()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, usize> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    /// So many bytes arrived.
    pub(super) fn grow(&mut self, bytes: usize) {
        let bytes = bytes.min(self.most - self.bytes);
        *self.budget.lock() += bytes;
        self.bytes += bytes;
    }

    /// Takes over so many of the bytes.
    pub(super) fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { budget: Arc::clone(&self.budget), bytes, most: self.most }
    }

    /// For more of the same: together they count no more than this one would.
    pub(super) fn more(&self) -> Self {
        self.budget.memory_of_at_most(self.most - self.bytes)
    }

    /// Takes over all bytes of another one.
    pub(super) fn join(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
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
        let mut receiving = self.source.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        *receiving.of(self.kind) -= self.bytes;
        drop(receiving);
        self.budget.freed.notify_waiters();
    }
}
