//! Room on this machine for converted layers, which all saves of a process share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Room for layers that wait on this machine until it is known what they share, in bytes of the layers as they are fetched. All saves that
/// are given the same share it.
///
/// No save waits for room: the registry that another one pushes to may stand still. Where a layer does not fit, those that wait are
/// stored, and make room. Where none of a save's own waits, one layer does that does not fit: so all end, and what waits is more than there
/// is room for by one layer a save at most.
#[derive(Debug)]
pub struct LayerSpace {
    limit: u64,
    taken: AtomicU64,
}

/// What the layers of one save take of it, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct LayerShare {
    space: Arc<LayerSpace>,
    taken: AtomicU64,
}

impl LayerSpace {
    /// Room for so many bytes.
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { limit: bytes, taken: AtomicU64::new(0) })
    }

    /// The bytes that still fit.
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.taken.load(Ordering::Relaxed))
    }
}

impl LayerShare {
    /// Nothing yet, of `space`.
    pub(crate) fn of(space: &Arc<LayerSpace>) -> Self {
        Self { space: Arc::clone(space), taken: AtomicU64::new(0) }
    }

    /// Takes what a layer of so many bytes needs, if that fits, or `anyway`. Returns whether it is taken.
    pub(crate) fn take(&self, bytes: u64, anyway: bool) -> bool {
        let LayerSpace { limit, taken } = &*self.space;
        let more = |taken: u64| {
            let sum = taken.saturating_add(bytes);
            (anyway || sum <= *limit).then_some(sum)
        };
        let is_taken = taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if is_taken {
            self.taken.fetch_add(bytes, Ordering::Relaxed);
        }
        is_taken
    }

    /// Gives all of it back.
    pub(crate) fn give_back(&self) {
        let bytes = self.taken.swap(0, Ordering::Relaxed);
        let less = |taken: u64| Some(taken.saturating_sub(bytes));
        let given = self.space.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        debug_assert!(given.is_ok(), "there is always less");
    }
}

impl Drop for LayerShare {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saves_share_their_room_and_one_without_a_layer_gets_one_anyway() {
        let space = LayerSpace::new(10);
        let [one, other] = [(); 2].map(|()| LayerShare::of(&space));
        assert!(one.take(4, true) && one.take(6, false) && !one.take(1, false));
        // There is no room for the other one, which could not go on without any.
        assert!(!other.take(1, false) && other.take(8, true));
        assert_eq!(space.left(), 0);
        one.give_back();
        assert_eq!(space.left(), 2);
        assert!(!one.take(3, false) && one.take(2, false));
        drop(other);
        assert_eq!(space.left(), 8);
        drop(one);
        assert_eq!(space.left(), 10);
    }

    #[test]
    fn a_layer_that_says_it_is_larger_than_all_room_takes_no_more_than_there_is_for_good() {
        let space = LayerSpace::new(10);
        let [one, other] = [(); 2].map(|()| LayerShare::of(&space));
        assert!(one.take(u64::MAX, true) && !one.take(u64::MAX, false) && other.take(u64::MAX, true));
        drop((one, other));
        assert_eq!(space.left(), 10);
    }
}
