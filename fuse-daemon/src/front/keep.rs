//! What becomes of a chunk that was ordered: verified and kept, ordered again, or given up.

use std::sync::{Arc, Weak};
use std::time::Instant;

use rafs::blob::Chunk;
use rafs::blob::decode::verify;

use super::Front;
use super::flight::Landed;
use super::message::{BackendName, ChunkError, ChunkKey, Content, Order, Orders, Responses};
use super::read::ReadError;
use super::wait::{Loose, Waiter};
use crate::cache::{CachedBlob, Described, StoreError, is_broken, is_full};
use crate::describe;
use crate::metrics::Chunk as Outcome;
use crate::pool::Job;
use crate::sync::atomic::Ordering;

/// How often a chunk is ordered again that was lost.
const LOSSES_LIMIT: u32 = 3;

/// How often a chunk is ordered again that came corrupt: no blob has more backends, unless a worker makes them up.
const REFUSALS_LIMIT: usize = 32;

impl Responses for Front {
    fn finished(&self, key: ChunkKey, outcome: Result<Content<'_>, ChunkError>) {
        // Of what nobody ordered, or not any longer, nothing is kept.
        let Some((blob, described)) = self.ordered(key) else { return };
        match outcome {
            Ok(content) => match check(&described, content.bytes) {
                Ok(()) => {
                    self.note_pace(key, content.from);
                    self.keep(key, &blob, &described.chunk, content.bytes);
                }
                Err(reason) => self.refuse(key, content.from, reason),
            },
            Err(ChunkError::Corrupt { from, reason }) => self.refuse(key, &from, reason),
            Err(error) => self.failed(key, error),
        }
    }
}

impl Orders for Front {
    fn blame(&self, owed: &[ChunkKey]) {
        let guilty = self.flights().blame(owed);
        for key in guilty {
            let (blob, chunk) = (key.blob, key.chunk.0);
            tracing::error!(%blob, chunk, "workers end over a chunk, reads of it fail");
            self.counters.chunk(Outcome::Failed);
            self.give_up(key, ChunkError::Deadly);
        }
    }

    fn left_alone(&self) {
        self.outages.begin();
    }

    fn order_again(&self) {
        self.outages.end();
        let (orders, left) = self.flights().order_again();
        left.into_iter().for_each(|(key, waiters)| fail(waiters, key, &ChunkError::Lost));
        if !orders.is_empty() {
            tracing::info!(
                chunks = orders.len(),
                "ordering the chunks again that an ended worker did not bring"
            );
            self.worker.fetch(orders);
        }
    }
}

impl Front {
    fn ordered(&self, key: ChunkKey) -> Option<(Arc<CachedBlob>, Described)> {
        self.flights().get(key).map(|flight| (Arc::clone(&flight.blob), flight.described.clone()))
    }

    /// Remembers how long the chunk took.
    fn note_pace(&self, key: ChunkKey, from: &BackendName) {
        let ordered = self.flights().get(key).and_then(|flight| flight.ordered.take());
        if let Some(ordered) = ordered {
            self.paces().came(&ordered, key.chunk, from, Instant::now());
        }
    }

    fn keep(&self, key: ChunkKey, blob: &CachedBlob, chunk: &Chunk, bytes: &[u8]) {
        match blob.store(key.chunk, chunk, bytes) {
            Ok(()) => {
                if self.is_full.swap(false, Ordering::Relaxed) {
                    tracing::info!("the cache's disk has room again");
                }
                if self.is_broken.swap(false, Ordering::Relaxed) {
                    tracing::info!("the cache's disk takes chunks again");
                }
                self.counters.chunk(Outcome::Kept { bytes: bytes.len() as u64 });
                self.land(key, chunk, bytes);
            }
            Err(StoreError::Outdated) => self.reorder(key),
            Err(StoreError::Io(error)) if is_full(&error) => {
                if !self.is_full.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "the cache's disk is full: serving from the network without caching");
                }
                self.counters.chunk(Outcome::NotCached);
                let loose = Loose::new(key, chunk, bytes);
                let waiters = self.landed(key, None);
                waiters.iter().for_each(|waiter| waiter.arrived_loose(loose.clone()));
            }
            Err(StoreError::Io(error)) => {
                if !self.is_broken.swap(true, Ordering::Relaxed) {
                    let (blob, chunk) = (key.blob, key.chunk.0);
                    tracing::error!(%blob, chunk, %error, "the cache's disk fails: serving from the network what it does not take");
                }
                self.counters.chunk(Outcome::NotCached);
                let loose = Loose::new(key, chunk, bytes);
                let waiters = self.landed(key, None).into_iter();
                let (readers, others): (Vec<_>, Vec<_>) = waiters.partition(|waiter| waiter.is_reader());
                readers.iter().for_each(|waiter| waiter.arrived_loose(loose.clone()));
                // Not for lack of room, which those who fetch ahead would wait for.
                fail(others, key, &ChunkError::Cache(error.to_string()));
            }
        }
    }

    /// The chunk was ordered as an image described it that is gone: whoever waits still means what is said of it now.
    fn reorder(&self, key: ChunkKey) {
        let mut flights = self.flights();
        let order = flights.get(key).and_then(|flight| {
            flight.described = flight.blob.describe(key.chunk)?;
            flight.order_alone(key)
        });
        drop(flights);
        self.order_or_give_up(key, order, ChunkError::Unknown);
    }

    /// What a backend delivered is not the chunk: it is ordered from the others.
    fn refuse(&self, key: ChunkKey, from: &BackendName, reason: String) {
        let (blob, chunk) = (key.blob, key.chunk.0);
        tracing::warn!(%blob, chunk, %from, reason, "corrupt chunk, turning to another backend");
        self.counters.chunk(Outcome::Corrupt);
        let order = self.flights().get(key).and_then(|flight| {
            flight.refused.push(Arc::clone(from));
            flight.corrupt = Some(format!("from {from}: {reason}"));
            if flight.refused.len() <= REFUSALS_LIMIT { flight.order_alone(key) } else { None }
        });
        self.order_or_give_up(key, order, ChunkError::Corrupt { from: Arc::clone(from), reason });
    }

    /// The worker cannot bring the chunk: what is to be tried again is, the rest given up.
    fn failed(&self, key: ChunkKey, error: ChunkError) {
        let mut flights = self.flights();
        let Some(flight) = flights.get(key) else { return };
        let mut late = Vec::new();
        let order = match &error {
            ChunkError::Lost => {
                flight.lost += 1;
                if flight.lost <= LOSSES_LIMIT { flight.order_alone(key) } else { None }
            }
            // The deadline is each reader's own: those who came later have time left.
            ChunkError::Late(_) => {
                let now = Instant::now();
                late = flight.let_go(|waiter| waiter.until() <= now);
                flight.order_alone(key)
            }
            // What came along may be what cannot be had: readers do not suffer for it.
            ChunkError::Fetch(_) if !flight.alone => flight.order_alone(key),
            _ => None,
        };
        if order.is_none() {
            // Told, and remembered, with the others.
            flight.waiters.append(&mut late);
        }
        let reason = flight.corrupt.clone();
        let demanded = flight.is_demanded();
        drop(flights);
        fail(late, key, &error);
        if order.is_none() && demanded {
            self.counters.chunk(Outcome::Failed);
            let (blob, chunk) = (key.blob, key.chunk.0);
            match &reason {
                Some(reason) => tracing::error!(%blob, chunk, reason, "corrupt chunk, reads of it fail"),
                None => tracing::error!(%blob, chunk, %error, "cannot fetch a chunk, reads of it fail"),
            }
        }
        self.order_or_give_up(key, order, error);
    }

    fn order_or_give_up(&self, key: ChunkKey, order: Option<Order>, error: ChunkError) {
        match order {
            Some(order) => self.worker.fetch(vec![order]),
            None => self.give_up(key, error),
        }
    }

    /// The chunk is in the cache. Who could not read it there takes its bytes.
    fn land(&self, key: ChunkKey, chunk: &Chunk, bytes: &[u8]) {
        let mut loose = None;
        for waiter in self.landed(key, None) {
            if waiter.takes_bytes() {
                let loose = loose.get_or_insert_with(|| Loose::new(key, chunk, bytes));
                waiter.arrived_loose(loose.clone());
            } else {
                waiter.arrived();
            }
        }
    }

    fn give_up(&self, key: ChunkKey, error: ChunkError) {
        fail(self.landed(key, Some(&error)), key, &error);
    }

    /// Ends a flight, and begins what had to wait for that: whom to tell.
    fn landed(&self, key: ChunkKey, error: Option<&ChunkError>) -> Vec<Arc<Waiter>> {
        let Landed { waiters, order, left } = self.flights().land(key, error);
        if let Some(order) = order {
            self.worker.fetch(vec![order]);
        }
        left.into_iter().for_each(|(key, waiters)| fail(waiters, key, &ChunkError::Lost));
        waiters
    }

    /// Has a chunk fetched that the cache only claimed to hold.
    fn fetch_unclaimed(&self, key: ChunkKey) {
        let mut flights = self.flights();
        let Some(flight) = flights.get(key) else { return };
        let (blob, chunk) = (Arc::clone(&flight.blob), flight.described.chunk.clone());
        let until = flight.waiters.iter().map(|waiter| waiter.until()).max();
        let orders = match until {
            Some(until) => {
                let limits = self.limits(blob.id());
                self.plan(&mut flights, &blob, &[(key.chunk, chunk)], (until, limits))
            }
            None => Vec::new(),
        };
        drop(flights);
        if orders.is_empty() {
            return self.give_up(key, ChunkError::Unknown);
        }
        self.worker.fetch(orders);
    }

    /// Verifies a chunk that the cache claims to hold; has it fetched if it does not.
    pub(super) fn verify_claim(&self, key: ChunkKey, demanded: bool) {
        let Some((blob, described)) = self.ordered(key) else { return };
        // Dropped without being told that it is over, it has the chunk ordered.
        let lost = OnLoss { front: Weak::clone(&self.me), key, over: false };
        let run = move || {
            let mut lost = lost;
            let Some(front) = lost.front.upgrade() else { return };
            let claimed = blob.claimed(&described.chunk);
            // What the disk cannot read now may be right, and is claimed as long as nothing else has come.
            let may_be_right = claimed.as_ref().is_err_and(is_broken);
            if let Some(content) = claimed.ok().filter(|content| check(&described, content).is_ok())
                && blob.confirm(key.chunk, &described.chunk)
            {
                front.land(key, &described.chunk, &content);
                lost.over = true;
                return;
            }
            if !may_be_right {
                tracing::info!(blob = %key.blob, chunk = key.chunk.0, "the cache lost a chunk, fetching it");
                blob.discard(key.chunk);
            }
            front.fetch_unclaimed(key);
            lost.over = true;
        };
        self.pool.submit(Job { chunks: vec![key], run: Box::new(run) }, demanded);
    }
}

/// Has a chunk ordered if the work on it ends in a bug.
struct OnLoss {
    front: Weak<Front>,
    key: ChunkKey,
    over: bool,
}

impl Drop for OnLoss {
    fn drop(&mut self) {
        if let (false, Some(front)) = (self.over, self.front.upgrade()) {
            front.failed(self.key, ChunkError::Lost);
        }
    }
}

fn fail(waiters: Vec<Arc<Waiter>>, key: ChunkKey, error: &ChunkError) {
    for waiter in waiters {
        waiter.fail(ReadError::Chunk { key, source: error.clone() });
    }
}

/// Whether these bytes are the chunk.
fn check(described: &Described, bytes: &[u8]) -> Result<(), String> {
    let Described { coding, chunk } = described;
    let (found, expected) = (bytes.len() as u64, u64::from(chunk.uncompressed_size));
    if found != expected {
        return Err(format!("it has {found} bytes; expected {expected}"));
    }
    verify(coding, chunk, bytes).map_err(|error| describe(&error))
}
