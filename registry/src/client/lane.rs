//! Connections that one upload has for itself: what moves on them is its own.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use super::silence::{Silence, SilenceLimit};

/// Which lanes are taken. They are numbered from 1, so that an upload takes over the connections of one before.
#[derive(Clone, Default)]
pub(super) struct Lanes(Arc<Mutex<BTreeSet<usize>>>);

/// A lane, until it is dropped: no two requests are under way on it at once.
pub(super) struct Lane {
    pub(super) number: usize,
    /// How long nothing has moved on it.
    pub(super) silence: Silence,
    lanes: Lanes,
}

impl Lanes {
    /// A lane that nobody has, on which nothing may move for so long.
    pub(super) fn take(&self, limit: Option<SilenceLimit>) -> Lane {
        let mut taken = self.lock();
        let number = (1..).find(|number| !taken.contains(number)).unwrap_or_default();
        taken.insert(number);
        Lane { number, silence: Silence::new(limit), lanes: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.lanes.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_one_upload_s_and_then_the_next_one_s() {
        let lanes = Lanes::default();
        let (first, second) = (lanes.take(None), lanes.take(None));
        assert_eq!((first.number, second.number), (1, 2));
        drop(first);
        assert_eq!((lanes.take(None).number, second.number), (1, 2));
    }
}
