//! The right to convert, of which there are few: each conversion takes memory and a thread.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::flight::STALLED_AFTER;

/// How many conversions there are at once, whoever makes them: clones share it.
#[derive(Clone, Debug)]
pub struct Slots(Arc<Semaphore>);

impl Slots {
    /// So many, and at least one.
    pub fn new(conversions: usize) -> Self {
        Self(Arc::new(Semaphore::new(conversions.max(1))))
    }

    /// Those of `slots`.
    pub(super) fn of(slots: &Arc<Semaphore>) -> Self {
        Self(Arc::clone(slots))
    }

    /// Waits for one.
    pub async fn take(&self) -> Slot {
        Slot::take(Arc::clone(&self.0)).await
    }
}

/// One of so many conversions at once. Dropped, another may begin.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
    patience: Duration,
}

impl Slot {
    /// Waits for one.
    pub(super) async fn take(slots: Arc<Semaphore>) -> Self {
        let permit = acquire(&slots).await;
        Self { slots, permit, patience: STALLED_AFTER }
    }

    /// Waits for `work`, which is somebody else's. While that stands still, as with a registry that hangs, another has the slot.
    pub async fn lend<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        if let Ok(done) = timeout(self.patience, &mut work).await {
            return done;
        }
        self.permit = None;
        let done = work.await;
        self.permit = acquire(&self.slots).await;
        done
    }
}

async fn acquire(slots: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Some(Arc::clone(slots).acquire_owned().await.expect("the semaphore is never closed"))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_slot_is_another_s_while_its_work_stands_still() {
        let slots = Arc::new(Semaphore::new(1));
        let mut slot = Slot { patience: Duration::ZERO, ..Slot::take(Arc::clone(&slots)).await };
        let (go, gone) = oneshot::channel();
        let mut lent = Box::pin(slot.lend(gone));
        assert!(timeout(Duration::from_millis(1), &mut lent).await.is_err());
        let other = Slot::take(Arc::clone(&slots)).await;
        // It goes on when there is a slot again.
        go.send(()).unwrap();
        assert!(lent.as_mut().now_or_never().is_none());
        drop(other);
        lent.await.unwrap();
        assert_eq!(slots.available_permits(), 0);
        drop(slot);
        assert_eq!(slots.available_permits(), 1);
    }

    #[tokio::test]
    async fn work_that_gets_on_keeps_its_slot() {
        let slots = Arc::new(Semaphore::new(1));
        let mut slot = Slot::take(Arc::clone(&slots)).await;
        slot.lend(async { assert_eq!(slots.available_permits(), 0) }).await;
        assert_eq!(slots.available_permits(), 0);
    }
}
