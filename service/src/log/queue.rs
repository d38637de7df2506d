//! Lines that wait to be written.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A bounded queue. Its lock is held for moments only, never while anything is written.
#[derive(Debug)]
pub(super) struct Queue {
    bytes_max: usize,
    state: Mutex<State>,
    /// A line came, or a line was written.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// Whether a line is taken and not yet written.
    writing: bool,
    lost: u64,
    /// How many of `lost` the log has been told.
    told: u64,
}

impl Queue {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Adds a line unless there is no room, which is counted.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.bytes + line.len() > self.bytes_max {
            state.lost += 1;
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line.into());
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for a line. It counts as being written until [`Self::written`].
    pub(super) fn take(&self) -> Box<[u8]> {
        let state = self.lock();
        let waited = self.changed.wait_while(state, |state| state.lines.is_empty());
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        let line = state.lines.pop_front().unwrap_or_default();
        state.bytes -= line.len();
        state.writing = true;
        line
    }

    /// The line taken last is written, or lost. Gives the number of lost lines that it is time to tell: somebody reads,
    /// and has read what came before them.
    pub(super) fn written(&self, success: bool) -> Option<u64> {
        let mut state = self.lock();
        state.writing = false;
        if !success {
            state.lost += 1;
        }
        let untold = state.lost - state.told;
        let tell = success && untold > 0 && state.lines.is_empty();
        if tell {
            state.told = state.lost;
        }
        drop(state);
        self.changed.notify_all();
        tell.then_some(untold)
    }

    /// Waits until nothing is left to write, for so long at most.
    pub(super) fn wait_until_written(&self, patience: Duration) {
        let busy = |state: &mut State| state.writing || !state.lines.is_empty();
        drop(self.changed.wait_timeout_while(self.lock(), patience, busy));
    }

    pub(super) fn lost(&self) -> u64 {
        self.lock().lost
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
