//! How fast blobs come, and so how much of one to ask for at once.
//!
//! A registry across the world takes as long for the first byte as for the next megabytes: there it is worth to ask for more than
//! a reader waits for. One beside us answers at once, and what nobody needed is only lost. In between, what comes in the time of
//! one answer (latency times rate) is the size at which waiting and loading cost the same.

use std::collections::{HashMap, VecDeque};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rafs::blob::ChunkIndex;

use super::message::Order;
use crate::control::BlobId;

/// Stored bytes of the largest request.
const REQUEST_BYTES_MAX: u64 = 8 << 20;

/// Orders whose times count: the best of them, as others may have waited for something else than the network.
const ORDERS: usize = 16;

/// Less behind the first chunk says nothing of the rate.
const RATE_BYTES_MIN: u64 = 64 << 10;

/// Blobs that are remembered at most; beyond, all are forgotten, at the price of starting small again.
const BLOBS: usize = 1024;

/// When what was ordered together came.
#[derive(Debug)]
pub(super) struct Ordered {
    blob: BlobId,
    at: Instant,
    last: ChunkIndex,
    /// Stored bytes behind the first extent.
    behind_first: u64,
    first_came: OnceLock<Instant>,
}

impl Ordered {
    pub(super) fn now(order: &Order) -> Self {
        let first = order.extents.front().map_or(0, |extent| extent.stored.end);
        Self {
            blob: order.blob,
            at: Instant::now(),
            last: ChunkIndex(order.end().0.saturating_sub(1)),
            behind_first: order.stored().end.saturating_sub(first),
            first_came: OnceLock::new(),
        }
    }
}

/// How the last orders of a blob came.
#[derive(Debug, Default)]
struct Pace {
    latencies: VecDeque<Duration>,
    /// Bytes a second.
    rates: VecDeque<u64>,
}

impl Pace {
    /// Bytes that come in the time of one answer.
    fn bytes_of_an_answer(&self) -> Option<u64> {
        let (latency, rate) = (self.latencies.iter().min()?, self.rates.iter().max()?);
        Some(u64::try_from(latency.as_micros()).ok()?.saturating_mul(*rate) / 1_000_000)
    }
}

/// The paces of all blobs.
#[derive(Debug, Default)]
pub(super) struct Paces {
    of_blob: HashMap<BlobId, Pace>,
    /// The blob that came last: where another comes from for which nothing is known.
    last: Option<BlobId>,
}

impl Paces {
    /// A chunk came that was ordered so.
    pub(super) fn came(&mut self, ordered: &Ordered, chunk: ChunkIndex) {
        let now = Instant::now();
        if self.of_blob.len() >= BLOBS && !self.of_blob.contains_key(&ordered.blob) {
            self.of_blob.clear();
        }
        self.last = Some(ordered.blob);
        let pace = self.of_blob.entry(ordered.blob).or_default();
        if ordered.first_came.set(now).is_ok() {
            note(&mut pace.latencies, now - ordered.at);
        }
        let took = ordered.first_came.get().map_or(Duration::ZERO, |first| now - *first);
        if chunk == ordered.last && ordered.behind_first >= RATE_BYTES_MIN && !took.is_zero() {
            note(&mut pace.rates, (ordered.behind_first as f64 / took.as_secs_f64()) as u64);
        }
    }

    /// Stored bytes to ask for at once, `least` or more.
    pub(super) fn request_bytes(&self, blob: BlobId, least: u64) -> u64 {
        let known = self.of_blob.get(&blob).and_then(Pace::bytes_of_an_answer);
        let similar = || self.of_blob.get(self.last.as_ref()?)?.bytes_of_an_answer();
        known.or_else(similar).unwrap_or(least).clamp(least, REQUEST_BYTES_MAX.max(least))
    }
}

fn note<T>(values: &mut VecDeque<T>, value: T) {
    if values.len() == ORDERS {
        values.pop_front();
    }
    values.push_back(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOB: BlobId = BlobId(rafs::digest::Digest([1; 32]));
    const LEAST: u64 = 256 << 10;

    /// What is asked for after orders whose first chunk came after so many milliseconds, and 1 MiB behind it in so many more.
    fn request_bytes(orders: &[(u64, u64)]) -> u64 {
        let mut paces = Paces::default();
        for (latency, transfer) in orders {
            let now = Instant::now();
            let first = now - Duration::from_millis(*transfer);
            let ordered = Ordered {
                blob: BLOB,
                at: first - Duration::from_millis(*latency),
                last: ChunkIndex(9),
                behind_first: 1 << 20,
                first_came: OnceLock::new(),
            };
            // As if it had come then.
            note(&mut paces.of_blob.entry(BLOB).or_default().latencies, first - ordered.at);
            let _ = ordered.first_came.set(first);
            paces.came(&ordered, ChunkIndex(9));
        }
        paces.request_bytes(BLOB, LEAST)
    }

    #[test]
    fn what_is_near_is_asked_for_little() {
        assert_eq!(request_bytes(&[]), LEAST);
        assert_eq!(request_bytes(&[(1, 10)]), LEAST);
    }

    #[test]
    fn what_is_far_is_asked_for_as_much_as_comes_in_the_time_of_an_answer() {
        // 100 MiB a second and 20 ms: 2 MiB, less what the test itself takes.
        let bytes = request_bytes(&[(20, 10)]);
        assert!((1 << 20..=(2 << 20)).contains(&bytes), "{bytes}");
        assert_eq!(request_bytes(&[(500, 10)]), REQUEST_BYTES_MAX);
    }

    #[test]
    fn a_slow_link_is_not_filled_with_what_nobody_waits_for() {
        assert_eq!(request_bytes(&[(100, 10_000)]), LEAST);
    }

    #[test]
    fn one_that_was_late_once_is_not_far_for_that() {
        assert_eq!(request_bytes(&[(1, 10), (500, 10)]), LEAST);
    }
}
