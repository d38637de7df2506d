//! What is counted of requests to all backends of one host, for as long as the process lives.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Upper ends of the histogram of answers, in milliseconds: from a registry beside the node to a read's deadline.
pub(crate) const ANSWER_MS: [u64; 11] = [5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 30_000];

/// Why a request failed, as far as it makes a difference to whoever looks after the node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FailureCause {
    /// Credentials are missing or not enough: 401, 403.
    Denied,
    /// The blob is not there: 404.
    Missing,
    /// Nothing came for so long that it was given up.
    Silent,
    /// Anything else.
    Other,
}

impl FailureCause {
    /// All of them, in the order in which [`HostTotals::failures`] counts them.
    pub(crate) const ALL: [Self; 4] = [Self::Denied, Self::Missing, Self::Silent, Self::Other];

    /// What metrics call it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Missing => "missing",
            Self::Silent => "silent",
            Self::Other => "other",
        }
    }
}

/// What a worker says of a host.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostTotals {
    pub(crate) requests: u64,
    /// One number for each of [`FailureCause::ALL`].
    pub(crate) failures: [u64; FailureCause::ALL.len()],
    /// Of blobs.
    pub(crate) bytes: u64,
    /// Requests that were sent again.
    pub(crate) retries: u64,
    /// Requests whose first bytes came within each of [`ANSWER_MS`] and not within the one before; and those of later ones.
    pub(crate) answers: [u64; ANSWER_MS.len() + 1],
    /// Time until these first bytes of all of them, in microseconds.
    pub(crate) answer_us: u64,
}

impl HostTotals {
    /// Each number, together with that of `other` in its place.
    pub(crate) fn combine(&mut self, mut other: Self, with: impl Fn(u64, u64) -> u64) {
        for (own, other) in self.numbers().zip(other.numbers()) {
            *own = with(*own, *other);
        }
    }

    fn numbers(&mut self) -> impl Iterator<Item = &mut u64> {
        let Self { requests, failures, bytes, retries, answers, answer_us } = self;
        [requests, bytes, retries, answer_us].into_iter().chain(failures).chain(answers)
    }
}

/// Counts requests to a host.
#[derive(Debug, Default)]
pub(crate) struct HostCounters {
    /// Counted by clients, of what they send again by themselves.
    retries: Arc<AtomicU64>,
    counted: Mutex<HostTotals>,
}

impl HostCounters {
    /// Counts what clients send again.
    pub(crate) fn retries(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.retries)
    }

    /// All of it, now.
    pub(crate) fn totals(&self) -> HostTotals {
        HostTotals { retries: self.retries.load(Ordering::Relaxed), ..self.lock().clone() }
    }

    pub(super) fn requested(&self) {
        self.lock().requests += 1;
    }

    pub(super) fn failed(&self, cause: FailureCause) {
        self.lock().failures[cause as usize] += 1;
    }

    pub(super) fn came(&self, bytes: usize) {
        let mut counted = self.lock();
        counted.bytes = counted.bytes.saturating_add(bytes as u64);
    }

    /// The first of an answer came so long after it was asked for.
    pub(super) fn answered(&self, after: Duration) {
        let bucket = ANSWER_MS.partition_point(|most| Duration::from_millis(*most) < after);
        let mut counted = self.lock();
        counted.answers[bucket] += 1;
        let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        counted.answer_us = counted.answer_us.saturating_add(micros);
    }

    fn lock(&self) -> MutexGuard<'_, HostTotals> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_counted_in_the_order_in_which_they_are_listed() {
        for (index, cause) in FailureCause::ALL.into_iter().enumerate() {
            let counters = HostCounters::default();
            counters.failed(cause);
            assert_eq!(counters.totals().failures[index], 1, "{}", cause.word());
        }
    }

    #[test]
    fn an_answer_counts_where_its_time_belongs() {
        let counters = HostCounters::default();
        for ms in [0, 5, 6, 30_000, 30_001] {
            counters.answered(Duration::from_millis(ms));
        }
        let HostTotals { answers, answer_us, .. } = counters.totals();
        assert_eq!((answers[0], answers[1], answers[10], answers[11]), (2, 1, 1, 1));
        assert_eq!((answers.iter().sum::<u64>(), answer_us), (5, 60_012_000));
    }

    #[test]
    fn every_number_is_combined() {
        let ones = HostTotals {
            requests: 1,
            failures: [1; 4],
            bytes: 1,
            retries: 1,
            answers: [1; ANSWER_MS.len() + 1],
            answer_us: 1,
        };
        let mut sum = ones.clone();
        sum.combine(ones, |own, other| own + other);
        assert!(sum.numbers().all(|number| *number == 2), "{sum:?}");
    }
}
