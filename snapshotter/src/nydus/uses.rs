//! Who is about to use an image, and which images are being unmounted though they are pulled: the two keep out of each other's way.
//!
//! A snapshot needs its image mounted before there is a record of it that says so. So whoever makes one says it beforehand, and
//! an image of which that is said is not unmounted; who comes later waits until it is, and mounts it again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::state::SnapshotId;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Uses {
    /// How many snapshots are being made on an image.
    users: Mutex<BTreeMap<SnapshotId, usize>>,
    going: watch::Sender<BTreeSet<SnapshotId>>,
}

impl Uses {
    fn users(&self) -> MutexGuard<'_, BTreeMap<SnapshotId, usize>> {
        // No code that holds it can panic half-way through a change.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image is not unmounted until the guard is dropped, which has to be after there is a record of what uses it.
    pub(super) fn begin(self: &Arc<Self>, id: SnapshotId) -> InUse {
        *self.users().entry(id).or_default() += 1;
        InUse { uses: Arc::clone(self), id }
    }

    /// Waits while the image is being unmounted.
    pub(super) async fn settled(&self, id: SnapshotId) {
        // The sender lives as long as `self`.
        let _ = self.going.subscribe().wait_for(|going| !going.contains(&id)).await;
    }

    /// Those of `ids` that nobody is about to use: until the guard is dropped, whoever wants to waits.
    pub(super) fn let_go(self: &Arc<Self>, ids: impl IntoIterator<Item = SnapshotId>) -> Going {
        let users = self.users();
        let ids: BTreeSet<_> = ids.into_iter().filter(|id| !users.contains_key(id)).collect();
        // While nobody can begin: who does so next sees it.
        self.going.send_modify(|going| going.extend(&ids));
        drop(users);
        Going { uses: Arc::clone(self), ids }
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

/// Images that are being unmounted.
#[derive(Debug)]
pub(crate) struct Going {
    uses: Arc<Uses>,
    ids: BTreeSet<SnapshotId>,
}

impl Going {
    /// Whether the image is one of them.
    pub(crate) fn contains(&self, id: SnapshotId) -> bool {
        self.ids.contains(&id)
    }

    /// It is unmounted, or stays: nobody need wait for it any longer.
    pub(crate) fn settle(&mut self, id: SnapshotId) {
        if self.ids.remove(&id) {
            self.uses.going.send_modify(|going| {
                going.remove(&id);
            });
        }
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        self.uses.going.send_modify(|going| going.retain(|id| !self.ids.contains(id)));
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
        let going = uses.let_go([IMAGE, OTHER]);
        assert!(!going.contains(IMAGE) && going.contains(OTHER));
        drop((going, second));
        assert!(uses.let_go([IMAGE]).contains(IMAGE));
    }

    #[tokio::test]
    async fn who_comes_while_it_goes_waits() {
        let uses = Arc::new(Uses::default());
        let mut going = uses.let_go([IMAGE, OTHER]);
        let in_use = uses.begin(IMAGE);
        let wait = |id| tokio::time::timeout(Duration::from_millis(20), uses.settled(id));
        assert!(wait(IMAGE).await.is_err());
        going.settle(IMAGE);
        assert!(wait(IMAGE).await.is_ok() && wait(OTHER).await.is_err());
        drop(going);
        assert!(wait(OTHER).await.is_ok());
        drop(in_use);
    }
}
