//! Snapshots that have directories but no record yet, which clean-up must leave alone.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::state::SnapshotId;

/// The ids of snapshots being made.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending(Arc<Mutex<BTreeSet<SnapshotId>>>);

impl Pending {
    /// Protects `id` until the guard is dropped, which has to be after its record is there.
    pub(super) fn protect(&self, id: SnapshotId) -> PendingGuard {
        self.ids().insert(id);
        PendingGuard { pending: self.clone(), id }
    }

    /// Those being made right now.
    pub(super) fn current(&self) -> BTreeSet<SnapshotId> {
        self.ids().clone()
    }

    fn ids(&self) -> MutexGuard<'_, BTreeSet<SnapshotId>> {
        // A set stays whole whatever its user does.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Protects a snapshot being made.
pub(super) struct PendingGuard {
    pending: Pending,
    id: SnapshotId,
}

impl Drop for PendingGuard {
    fn drop(&mut self) {
        self.pending.ids().remove(&self.id);
    }
}
