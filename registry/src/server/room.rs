//! Memory for what clients send: a budget that all share.
//!
//! What an upload brings takes its place when it has come, and gives it back when it is on the disk or its request is gone: who
//! sends nothing holds nothing, so that slow clients keep nobody out. Who waits for a place is served in order.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{Code, Failure};

/// A budget of bytes.
#[derive(Clone)]
pub(super) struct Room {
    places: Arc<Semaphore>,
    total: u32,
    patience: Duration,
}

/// Bytes that have a place, until they are dropped.
pub(super) struct Placed {
    bytes: Bytes,
    _place: OwnedSemaphorePermit,
}

impl Room {
    /// Room for `total` bytes, for whose places nobody waits longer than `patience`.
    pub(super) fn new(total: u32, patience: Duration) -> Self {
        let places = usize::try_from(total).unwrap_or(Semaphore::MAX_PERMITS);
        Self { places: Arc::new(Semaphore::new(places)), total, patience }
    }

    /// Waits until there is room for `bytes`.
    pub(super) async fn place(&self, bytes: Bytes) -> Result<Placed, Failure> {
        let place = self.reserve(bytes.len()).await?;
        Ok(Placed { bytes, _place: place })
    }

    /// Waits until there is room for `size` bytes that are to come.
    pub(super) async fn reserve(&self, size: usize) -> Result<OwnedSemaphorePermit, Failure> {
        // What is more than all of it has all of it.
        let size = u32::try_from(size).unwrap_or(u32::MAX).min(self.total);
        let place = tokio::time::timeout(self.patience, self.places.clone().acquire_many_owned(size));
        match place.await {
            Ok(Ok(place)) => Ok(place),
            // It is never closed.
            Ok(Err(_)) | Err(_) => {
                let reason = format!("no room for {size} bytes of it within {:?}", self.patience);
                Err(Failure::new(Code::Crowded, reason))
            }
        }
    }

    /// How many bytes have a place.
    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        usize::try_from(self.total).unwrap() - self.places.available_permits()
    }
}

impl Deref for Placed {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_is_given_back_with_its_bytes_and_waited_for_no_longer_than_said() {
        let mut room = Room::new(10, Duration::from_millis(50));
        let first = room.place(Bytes::from_static(b"12345678")).await.unwrap();
        assert_eq!((room.taken(), first.len()), (8, 8));
        let refused = room.place(Bytes::from_static(b"123")).await.map(drop).unwrap_err();
        assert_eq!(refused.code(), Code::Crowded);
        assert_eq!(room.taken(), 8, "who was refused holds nothing");
        room.patience = Duration::from_secs(60);
        let other = room.place(Bytes::from_static(b"123"));
        let (other, ()) = tokio::join!(other, async { drop(first) });
        assert_eq!(other.map(|other| other.len()).unwrap(), 3);
    }

    #[tokio::test]
    async fn who_comes_first_is_placed_first_however_much_it_is() {
        let room = Room::new(10, Duration::from_secs(60));
        let first = room.place(Bytes::from_static(b"12345678")).await.unwrap();
        let mut large = Box::pin(room.place(Bytes::from_static(b"1234567890 and more than all")));
        assert!(futures::poll!(&mut large).is_pending());
        let mut small = Box::pin(room.place(Bytes::from_static(b"1")));
        assert!(futures::poll!(&mut small).is_pending(), "there would be room");
        drop(first);
        let large = large.await.unwrap();
        assert_eq!(room.taken(), 10);
        drop(large);
        small.await.unwrap();
    }
}
