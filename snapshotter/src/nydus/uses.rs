//! Who is about to use an image, and which images are being unmounted though they are pulled: the two keep out of each other's way.
//!
//! A snapshot needs its image mounted before there is a record of it that says so. So whoever makes one says it beforehand, and
//! an image of which that is said is not unmounted; who comes later waits until it is, and mounts it again. When it was said last is
//! remembered, as that is how long ago an image was used.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use crate::state::SnapshotId;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Uses {
    /// How many snapshots are being made on an image.
    users: Mutex<BTreeMap<SnapshotId, usize>>,
    /// When the last one began to be made on an image.
    last: Mutex<BTreeMap<SnapshotId, Instant>>,
    going: watch::Sender<BTreeSet<SnapshotId>>,
}

impl Uses {
    fn last_uses(&self) -> MutexGuard<'_, BTreeMap<SnapshotId, Instant>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the last use of an image began, unless it was forgotten since.
    pub(super) fn last(&self, id: SnapshotId) -> Option<Instant> {
        self.last_uses().get(&id).copied()
    }

    /// Forgets when an image was used, which is unmounted.
    pub(super) fn forget(&self, id: SnapshotId) {
        self.last_uses().remove(&id);
    }

    fn users(&self) -> MutexGuard<'_, BTreeMap<SnapshotId, usize>> {
        // No code that holds it can panic half-way through a change.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image is not unmounted until the guard is dropped, which has to be after there is a record of what uses it.
    pub(super) fn begin(self: &Arc<Self>, id: SnapshotId) -> InUse {
        *self.users().entry(id).or_default() += 1;
        self.last_uses().insert(id, Instant::now());
        InUse { uses: Arc::clone(self), id }
    }

    /// Waits while the image is being unmounted.
    pub(super) async fn settled(&self, id: SnapshotId) {
        // The sender lives as long as `self`.
        let _ = self.going.subscribe().wait_for(|going| !going.contains(&id)).await;
    }

    /// The image, if nobody is about to use it: until the guard is dropped, whoever wants to waits.
    pub(super) fn let_go(self: &Arc<Self>, id: SnapshotId) -> Option<Going> {
        let users = self.users();
        if users.contains_key(&id) {
            return None;
        }
        // While nobody can begin: who does so next sees it.
        self.going.send_modify(|going| {
            going.insert(id);
        });
        drop(users);
        Some(Going { uses: Arc::clone(self), id })
    }
}

/// A snapshot is being made on an image.
#[derive(Debug)]
pub(crate) struct InUse {
    uses: Arc<Uses>,
    id: SnapshotId,
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut users = self.uses.users();
        if let Some(count) = users.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.id);
            }
        }
    }
}

/// An image is being unmounted.
#[derive(Debug)]
pub(crate) struct Going {
    uses: Arc<Uses>,
    id: SnapshotId,
}

impl Drop for Going {
    fn drop(&mut self) {
        self.uses.going.send_modify(|going| {
            going.remove(&self.id);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const IMAGE: SnapshotId = SnapshotId(1);
    const OTHER: SnapshotId = SnapshotId(2);

    #[test]
    fn what_somebody_is_about_to_use_does_not_go() {
        let uses = Arc::new(Uses::default());
        let (first, second) = (uses.begin(IMAGE), uses.begin(IMAGE));
        drop(first);
        assert!(uses.let_go(IMAGE).is_none() && uses.let_go(OTHER).is_some());
        drop(second);
        assert!(uses.let_go(IMAGE).is_some());
    }

    #[test]
    fn the_last_use_is_remembered_until_it_is_forgotten() {
        let uses = Arc::new(Uses::default());
        drop(uses.begin(IMAGE));
        let first = uses.last(IMAGE);
        drop(uses.begin(IMAGE));
        assert!(first.is_some() && uses.last(IMAGE) >= first && uses.last(OTHER).is_none());
        uses.forget(IMAGE);
        assert_eq!(uses.last(IMAGE), None);
    }

    #[tokio::test]
    async fn who_comes_while_it_goes_waits() {
        let uses = Arc::new(Uses::default());
        let going = uses.let_go(IMAGE);
        let in_use = uses.begin(IMAGE);
        let wait = |id| tokio::time::timeout(Duration::from_millis(20), uses.settled(id));
        assert!(wait(IMAGE).await.is_err() && wait(OTHER).await.is_ok());
        drop(going);
        assert!(wait(IMAGE).await.is_ok());
        drop(in_use);
    }
}
