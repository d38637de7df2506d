//! Until when a reader waits. Time in which no worker lives does not count: that a worker ends is never a reader's error, even if
//! others end before one is ready. But not for ever: where no worker can be had, readers are told.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Deadlines that are added at most.
const DEADLINES_MORE: u32 = 3;

/// How long there was no worker.
#[derive(Debug, Default)]
pub(super) struct Outages(Mutex<OutageState>);

#[derive(Debug, Default)]
struct OutageState {
    /// That are over.
    total: Duration,
    /// Since when there is none.
    since: Option<Instant>,
}

impl Outages {
    /// No worker lives.
    pub(super) fn begin(&self) {
        self.lock().since.get_or_insert_with(Instant::now);
    }

    /// One does.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        let time = state.since.take().map(|since| since.elapsed());
        state.total += time.unwrap_or_default();
    }

    fn total(&self) -> Duration {
        let state = self.lock();
        state.total + state.since.map(|since| since.elapsed()).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, OutageState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the time of somebody who waits is over.
#[derive(Clone, Debug)]
pub struct Until {
    /// If there is a worker all the time.
    end: Instant,
    /// How much may be added.
    most: Duration,
    outages: Arc<Outages>,
    /// Their sum when this began.
    before: Duration,
}

impl Until {
    /// So long from now on.
    pub(super) fn after(time: Duration, outages: &Arc<Outages>) -> Self {
        let before = outages.total();
        Self { end: Instant::now() + time, most: time * DEADLINES_MORE, outages: Arc::clone(outages), before }
    }

    /// At a time, whatever happens.
    #[cfg(test)]
    pub(crate) fn at(end: Instant) -> Self {
        Self { end, most: Duration::ZERO, outages: Arc::default(), before: Duration::ZERO }
    }

    /// The time, as far as is known: while there is no worker, it grows.
    pub fn time(&self) -> Instant {
        self.end + self.outages.total().saturating_sub(self.before).min(self.most)
    }
}
