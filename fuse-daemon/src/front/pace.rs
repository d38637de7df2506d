//! How fast backends deliver, and so how much to ask for at once.
//!
//! A registry across the world takes as long for the first byte as for the next megabytes: there it is worth to ask for more than
//! a reader waits for. One beside us answers at once, and what nobody needed is only lost. In between, what comes in the time of
//! one answer (latency times rate) is the size at which waiting and loading cost the same.
//!
//! The time of an answer is the shortest of some minutes: a link that is busy answers late, and asking for more would make it later
//! still.

mod shortest;

use std::collections::{HashMap, VecDeque};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rafs::blob::ChunkIndex;

use super::ahead::{OnWay, Reach};
use super::message::{BackendName, Order};
use crate::control::BlobId;
use shortest::Shortest;

/// Stored bytes of the largest request.
const REQUEST_LIMIT_BYTES: u64 = 8 << 20;

/// Of what answers at once, who comes from elsewhere is brought this part of a request: most of what programs do not read on from is left out,
/// another request takes little time, and who does go on soon has whole ones ahead.
const FIRST_PART: u64 = 8;

/// Orders whose rate counts: the best of them, as others may have shared the link.
const ORDERS: usize = 16;

/// Less behind the first chunk says nothing of the rate.
const RATE_BYTES_MIN: u64 = 64 << 10;

/// What fetching, decoding and keeping take on this machine itself, and more is not asked for: of a registry on the same machine as much
/// came in that time as nobody would wait for.
const OWN_WORK: Duration = Duration::from_millis(2);

/// Bytes a second of what is far, until the rate is known: the time of an answer is known sooner …
const RATE_GUESSED: u64 = 16 << 20;
/// … and what takes so long to answer is far; if it has answered once only, so long: a registry nearby may read from its disk first.
const FAR: Duration = Duration::from_millis(10);
const FAR_AT_FIRST: Duration = Duration::from_millis(40);
/// A link that is slower than that is busy with no more than so many times the least.
const GUESSED_FACTOR: u64 = 4;

/// Requests of the size that comes in the time of an answer that are ahead of who reads in order, all together: one that comes, one
/// that is asked for, and as much again since neither time nor rate are ever the best that was seen.
const ANSWERS_AHEAD: u64 = 4;

/// The same of a backend that answers at once, in requests of the least size: fetching, decoding and reading go on side by side …
const LEAST_AHEAD: u64 = 4;
/// … and who goes on in order has more ahead by and by, up to what comes in this time, so that requests are few and nobody waits for one …
const TIME_AHEAD: Duration = Duration::from_millis(64);
/// … in requests of the least size at most.
const MOST_AHEAD: u64 = 32;

/// How many times as much is ahead of a reader in order each time that more is ordered …
const GROWTH: u64 = 2;
/// … of what is far, where each time may cost the time of an answer …
const GROWTH_FAR: u64 = 4;
/// … and at least what comes in the time of so many: while one half of that comes the next is asked for, and nobody waits in between.
const ANSWERS_BEGUN: u64 = 2;

/// Blobs and backends that are remembered at most; beyond, all are forgotten, at the price of starting small again. Each repository
/// is a backend of its own, and nodes run images of a hundred and more.
const BLOBS: usize = 1024;
const BACKENDS: usize = 1024;

/// When what was ordered together came.
#[derive(Debug)]
pub(super) struct Ordered {
    blob: BlobId,
    at: Instant,
    last: ChunkIndex,
    /// Stored bytes behind the first extent.
    behind_first: u64,
    first_came: OnceLock<Instant>,
    _on_way: OnWay,
}

impl Ordered {
    pub(super) fn now(order: &Order, on_way: OnWay) -> Self {
        let first = order.extents.front().map_or(0, |extent| extent.stored.end);
        Self {
            blob: order.blob,
            at: Instant::now(),
            last: ChunkIndex(order.end().0.saturating_sub(1)),
            behind_first: order.stored().end.saturating_sub(first),
            first_came: OnceLock::new(),
            _on_way: on_way,
        }
    }
}

/// How the last orders from a backend came.
#[derive(Debug, Default)]
struct Pace {
    latency: Option<Shortest>,
    /// Whether it has answered more than once.
    answers_again: bool,
    /// Bytes a second.
    rates: VecDeque<u64>,
}

impl Pace {
    /// Whether it takes long to answer.
    fn is_far(&self) -> bool {
        let far = if self.answers_again { FAR } else { FAR_AT_FIRST };
        self.latency.as_ref().is_some_and(|latency| latency.get() >= far)
    }

    /// Whether waiting for it takes no longer than our own work.
    fn answers_at_once(&self) -> bool {
        self.latency.as_ref().is_some_and(|shortest| shortest.get() <= OWN_WORK)
    }

    /// Bytes that come in the time of one answer, as far as it is known; `least` are asked for at once otherwise.
    fn bytes_of_an_answer(&self, least: u64) -> Option<u64> {
        let latency = self.latency.as_ref()?.get();
        let on_way = latency.saturating_sub(OWN_WORK);
        match self.bytes_in(on_way) {
            None if self.is_far() => {
                Some(bytes_in(on_way, RATE_GUESSED).min(least.saturating_mul(GUESSED_FACTOR)))
            }
            known => known,
        }
    }

    /// Bytes that come in such a time, if the rate is known.
    fn bytes_in(&self, time: Duration) -> Option<u64> {
        self.rates.iter().max().map(|rate| bytes_in(time, *rate))
    }
}

/// The paces of all backends.
#[derive(Debug, Default)]
pub(super) struct Paces {
    of_backend: HashMap<BackendName, Pace>,
    /// Who delivered last of a blob.
    of_blob: HashMap<BlobId, BackendName>,
    /// Who delivered last: where another blob comes from of which nothing is known.
    last: Option<BackendName>,
}

impl Paces {
    /// A chunk came from `backend` that was ordered so.
    pub(super) fn came(&mut self, ordered: &Ordered, chunk: ChunkIndex, backend: &BackendName, now: Instant) {
        // The names are the worker's, which may make them up.
        if self.of_backend.len() >= BACKENDS && !self.of_backend.contains_key(backend) {
            *self = Self::default();
        }
        if self.of_blob.len() >= BLOBS && !self.of_blob.contains_key(&ordered.blob) {
            self.of_blob.clear();
        }
        self.of_blob.insert(ordered.blob, BackendName::clone(backend));
        self.last = Some(BackendName::clone(backend));
        let pace = self.of_backend.entry(BackendName::clone(backend)).or_default();
        if ordered.first_came.set(now).is_ok() {
            let latency = now.saturating_duration_since(ordered.at);
            match &mut pace.latency {
                Some(shortest) => {
                    shortest.note(latency, now);
                    pace.answers_again = true;
                }
                none => *none = Some(Shortest::new(latency, now)),
            }
        }
        let took = ordered.first_came.get().map_or(Duration::ZERO, |first| now - *first);
        if chunk == ordered.last && ordered.behind_first >= RATE_BYTES_MIN && !took.is_zero() {
            note(&mut pace.rates, (ordered.behind_first as f64 / took.as_secs_f64()) as u64);
        }
    }

    /// Stored bytes to ask for at once, `least` or more.
    pub(super) fn request_bytes(&self, blob: BlobId, least: u64) -> u64 {
        self.bytes_of_an_answer(blob, least).unwrap_or(least).clamp(least, REQUEST_LIMIT_BYTES.max(least))
    }

    /// The same for a reader that comes from elsewhere.
    pub(super) fn first_bytes(&self, blob: BlobId, least: u64) -> u64 {
        match self.of(blob) {
            Some(pace) if pace.answers_at_once() => least.div_ceil(FIRST_PART),
            _ => self.request_bytes(blob, least),
        }
    }

    /// How much is ahead of a reader in order, where `least` stored bytes are asked for at once, and `most` may be ahead.
    pub(super) fn reach(&self, blob: BlobId, least: u64, most: u64) -> Reach {
        let (first, most) = (self.first_bytes(blob, least), self.ahead_bytes(blob, least).min(most));
        // A slow link is full of the least, however far it leads.
        if self.is_far(blob) && first > least {
            let least = first.saturating_mul(ANSWERS_BEGUN);
            return Reach { first, least, most, growth: GROWTH_FAR, growth_until: most };
        }
        let growth_until = self.of_answers(blob, least).max(least.saturating_mul(LEAST_AHEAD));
        Reach { first, least: first, most, growth: GROWTH, growth_until }
    }

    /// Stored bytes that are ahead of a reader in order at most, where `least` are asked for at once.
    fn ahead_bytes(&self, blob: BlobId, least: u64) -> u64 {
        let far = self.of_answers(blob, least);
        let near = self.of(blob).and_then(|pace| pace.bytes_in(TIME_AHEAD)).unwrap_or_default();
        let (fewest, most) = (least.saturating_mul(LEAST_AHEAD), least.saturating_mul(MOST_AHEAD));
        far.max(near.clamp(fewest, most))
    }

    /// Stored bytes that come in the time of some answers.
    fn of_answers(&self, blob: BlobId, least: u64) -> u64 {
        self.bytes_of_an_answer(blob, least).unwrap_or_default().saturating_mul(ANSWERS_AHEAD)
    }

    /// Whether it takes long to answer.
    pub(super) fn is_far(&self, blob: BlobId) -> bool {
        self.of(blob).is_some_and(Pace::is_far)
    }

    fn bytes_of_an_answer(&self, blob: BlobId, least: u64) -> Option<u64> {
        self.of(blob)?.bytes_of_an_answer(least)
    }

    /// Of the backend that delivered last of the blob, or else of any.
    fn of(&self, blob: BlobId) -> Option<&Pace> {
        self.of_backend.get(self.of_blob.get(&blob).or(self.last.as_ref())?)
    }
}

/// Bytes that come in such a time at so many a second.
fn bytes_in(time: Duration, rate: u64) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).saturating_mul(rate) / 1_000_000
}

fn note<T>(values: &mut VecDeque<T>, value: T) {
    if values.len() == ORDERS {
        values.pop_front();
    }
    values.push_back(value);
}

#[cfg(test)]
mod tests {
    use super::super::ahead::Streams;
    use super::*;
    use crate::cache::Generation;

    const BLOB: BlobId = BlobId(rafs::digest::Digest([1; 32]));
    const OTHER: BlobId = BlobId(rafs::digest::Digest([2; 32]));
    const LEAST: u64 = 256 << 10;

    fn backend(name: &str) -> BackendName {
        BackendName::from(name)
    }

    /// An order whose first chunk came after so many milliseconds, and 1 MiB behind it in so many more.
    fn came(paces: &mut Paces, blob: BlobId, name: &str, (latency, transfer): (u64, u64)) {
        let now = Instant::now();
        let first = now - Duration::from_millis(transfer);
        let latency = Duration::from_millis(latency);
        let ordered = Ordered {
            blob,
            at: first - latency,
            last: ChunkIndex(9),
            behind_first: 1 << 20,
            first_came: OnceLock::new(),
            _on_way: Streams::default().sets_out(Generation(1), 1 << 20),
        };
        // As if it had come then.
        let pace = paces.of_backend.entry(backend(name)).or_default();
        pace.latency.get_or_insert_with(|| Shortest::new(latency, first)).note(latency, first);
        let _ = ordered.first_came.set(first);
        paces.came(&ordered, ChunkIndex(9), &backend(name), now);
    }

    /// The only chunk of an order came after so many milliseconds. It is noted as it comes, without what the above puts in before.
    fn answered(paces: &mut Paces, blob: BlobId, name: &str, latency: u64) {
        let now = Instant::now();
        let ordered = Ordered {
            blob,
            at: now - Duration::from_millis(latency),
            last: ChunkIndex(0),
            behind_first: 0,
            first_came: OnceLock::new(),
            _on_way: Streams::default().sets_out(Generation(1), 0),
        };
        paces.came(&ordered, ChunkIndex(0), &backend(name), now);
    }

    fn request_bytes(orders: &[(u64, u64)]) -> u64 {
        let mut paces = Paces::default();
        orders.iter().for_each(|order| came(&mut paces, BLOB, "one", *order));
        paces.request_bytes(BLOB, LEAST)
    }

    #[test]
    fn what_is_near_is_asked_for_little() {
        assert_eq!(request_bytes(&[]), LEAST);
        assert_eq!(request_bytes(&[(1, 10)]), LEAST);
    }

    #[test]
    fn who_comes_from_elsewhere_to_what_is_near_is_brought_little_and_has_more_ahead_going_on() {
        let mut paces = Paces::default();
        assert_eq!(paces.first_bytes(BLOB, LEAST), LEAST, "it may be far");
        came(&mut paces, BLOB, "near", (1, 10));
        assert_eq!(paces.first_bytes(BLOB, LEAST), LEAST / FIRST_PART);
        assert_eq!(paces.first_bytes(BLOB, 1), 1, "who wants little gets little");
        let reach = paces.reach(BLOB, LEAST, u64::MAX);
        assert_eq!((reach.first, reach.least), (LEAST / FIRST_PART, LEAST / FIRST_PART));
        // Another request to what takes a while costs that while, also on a link so slow that little comes in it.
        for (name, pace) in [("region", (5, 10_000)), ("slow", (50, 100_000)), ("far", (500, 10))] {
            came(&mut paces, OTHER, name, pace);
            assert_eq!(paces.first_bytes(OTHER, LEAST), paces.request_bytes(OTHER, LEAST), "{name}");
        }
    }

    #[test]
    fn a_node_knows_how_far_all_repositories_of_its_images_are() {
        const REPOSITORIES: u16 = 300;
        let blob = |number: u16| {
            let mut digest = [0; 32];
            digest[..2].copy_from_slice(&number.to_le_bytes());
            BlobId(rafs::digest::Digest(digest))
        };
        let mut paces = Paces::default();
        for number in 0..REPOSITORIES {
            answered(&mut paces, blob(number), &format!("far/{number}"), 500);
        }
        answered(&mut paces, BLOB, "near", 1);
        let is_far = (0..REPOSITORIES).filter(|number| paces.is_far(blob(*number)));
        assert_eq!(is_far.count(), usize::from(REPOSITORIES));
        assert!(!paces.is_far(BLOB));
    }

    #[test]
    fn what_is_far_is_asked_for_as_much_as_comes_in_the_time_of_an_answer() {
        // 100 MiB a second and 20 ms: 2 MiB, less what comes in the time of our own work.
        let bytes = request_bytes(&[(20, 10)]);
        assert!((1 << 20..=(2 << 20)).contains(&bytes), "{bytes}");
        assert_eq!(request_bytes(&[(500, 10)]), REQUEST_LIMIT_BYTES);
    }

    #[test]
    fn far_is_known_before_the_rate_is() {
        let mut paces = Paces::default();
        let now = Instant::now();
        let latency = Duration::from_millis(100);
        let pace = paces.of_backend.entry(backend("one")).or_default();
        pace.latency = Some(Shortest::new(latency, now));
        paces.of_blob.insert(BLOB, backend("one"));
        assert_eq!(paces.request_bytes(BLOB, LEAST), GUESSED_FACTOR * LEAST);
        assert_eq!(paces.request_bytes(BLOB, 1), GUESSED_FACTOR, "who wants little gets little");
    }

    #[test]
    fn one_that_is_slow_to_answer_the_first_time_only_is_not_far() {
        let is_far = |orders: &[u64]| {
            let mut paces = Paces::default();
            orders.iter().for_each(|latency| answered(&mut paces, BLOB, "one", *latency));
            paces.is_far(BLOB)
        };
        assert!(!is_far(&[]) && !is_far(&[20]) && is_far(&[60]));
        assert!(is_far(&[20, 20]) && !is_far(&[60, 3]));
    }

    #[test]
    fn the_further_the_more_is_ahead_of_who_reads_in_order() {
        let ahead_bytes = |order| {
            let mut paces = Paces::default();
            came(&mut paces, BLOB, "one", order);
            paces.ahead_bytes(BLOB, LEAST)
        };
        assert_eq!(Paces::default().ahead_bytes(BLOB, LEAST), 4 * LEAST, "the rate is not known");
        assert_eq!(ahead_bytes((1, 1000)), 4 * LEAST);
        let (in_time, most) = (ahead_bytes((1, 10)), ahead_bytes((1, 1)));
        assert!((16 * LEAST..30 * LEAST).contains(&in_time) && most == 32 * LEAST, "{in_time} {most}");
        assert!((16 << 20..=20 << 20).contains(&ahead_bytes((50, 10))), "{}", ahead_bytes((50, 10)));
        assert_eq!(ahead_bytes((100, 10_000)), 4 * LEAST, "it would fill a slow link");
    }

    #[test]
    fn what_is_ahead_grows_faster_of_what_is_far() {
        let growth = |order| {
            let mut paces = Paces::default();
            came(&mut paces, BLOB, "one", order);
            let Reach { first, least, growth, .. } = paces.reach(BLOB, LEAST, u64::MAX);
            (least / first, growth)
        };
        assert_eq!(Paces::default().reach(BLOB, LEAST, u64::MAX).growth, GROWTH);
        assert_eq!((growth((1, 10)), growth((9, 10))), ((1, GROWTH), (1, GROWTH)));
        assert_eq!(growth((50, 10)), (ANSWERS_BEGUN, GROWTH_FAR));
        assert_eq!(growth((100, 10_000)), (1, GROWTH), "it would fill a slow link");
    }

    #[test]
    fn a_slow_link_is_not_filled_with_what_nobody_waits_for() {
        assert_eq!(request_bytes(&[(100, 10_000)]), LEAST);
    }

    #[test]
    fn one_that_was_late_is_not_far_for_that() {
        assert_eq!(request_bytes(&[(1, 10), (500, 10)]), LEAST);
        let mut busy = vec![(1, 10)];
        busy.extend([(50, 10); 10 * ORDERS]);
        assert_eq!(request_bytes(&busy), LEAST);
    }

    #[test]
    fn blobs_of_one_backend_are_equally_far_and_those_of_another_are_not() {
        let mut paces = Paces::default();
        came(&mut paces, BLOB, "near", (1, 10));
        came(&mut paces, OTHER, "near", (500, 10));
        assert_eq!(paces.request_bytes(OTHER, LEAST), LEAST);
        came(&mut paces, OTHER, "far", (500, 10));
        assert_eq!(paces.request_bytes(OTHER, LEAST), REQUEST_LIMIT_BYTES);
        assert_eq!(paces.request_bytes(BLOB, LEAST), LEAST);
    }
}
