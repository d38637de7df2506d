//! What the kernel waits on: it answers reads from the cache, and has the worker bring chunks that are missing.
//!
//! ```text
//!   read ──> all chunks ready? ──yes──> read the cache file; still ready? ──yes──> answer
//!     ^              │ no                        │ no
//!     │              └────────────┬──────────────┘
//!     └── all there ── ensure <───┘
//!                        │  ├── claimed ──> verify in place (threads of the front)
//!                        │  └── missing ──> plan ──> Order ──────────────> Worker
//!                        │                                                   │
//!                    flights <── verify, write, set bit <── content ── Responses::finished
//! ```
//!
//! The front does no network, no decoding, and never blocks a kernel-facing thread on the worker: a read that has to
//! wait is put aside, and answered by whoever completes it. It believes the worker nothing: what arrives is held against
//! what the cache knows of the chunk. It decides what is fetched, tried again, and given up; the worker has no state that
//! its successor would miss.

mod ahead;
mod deadline;
mod flight;
mod keep;
mod message;
mod pace;
mod plan;
mod read;
mod suspects;
#[cfg(test)]
mod tests;
mod wait;

use std::ops::Range;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use rafs::blob::ChunkIndex;

pub use message::{
    BackendName, ChunkError, ChunkKey, Content, Extent, Fill, Order, Orders, Responses, Worker,
};
pub use read::{Piece, ReadError};
pub use wait::Want;

use crate::buffers::Buffers;
use crate::cache::{CachedBlob, ChunkState};
use crate::control::BlobId;
use crate::metrics::Counters;
use crate::pool::Pool;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard};
use ahead::{Further, Streams};
use deadline::Deadlines;
use flight::{Flight, Flights};
use pace::{Ordered, Paces};
use plan::Limits;
use read::{Answer, read_now};
use wait::{Done, Loose, Urgency, Waiter};

/// Chunks that are looked at in search of what to read ahead.
const PASSED_OVER_LIMIT: u32 = 1024;

/// Stored bytes that are ordered at once ahead of a reader at most.
const AHEAD_BYTES_MAX: u64 = 16 << 20;

/// How the front works.
#[derive(Clone, Debug)]
pub struct FrontConfig {
    /// Time for a read to be answered.
    pub deadline: Duration,
    /// Stored bytes to order at once, chunks that nobody asked for included: so many of what is near, more of what takes
    /// long to answer.
    pub request_bytes: u64,
    /// Threads that verify what an earlier boot left.
    pub threads: usize,
    /// How long a chunk that failed is not tried again.
    pub failure_memory: Duration,
}

/// The front of all mounts.
pub struct Front {
    me: Weak<Self>,
    config: FrontConfig,
    worker: Arc<dyn Worker>,
    flights: Mutex<Flights>,
    streams: Mutex<Streams>,
    paces: Mutex<Paces>,
    deadlines: Deadlines,
    pool: Pool,
    /// Whether the last chunk found no room in the cache.
    is_full: AtomicBool,
    counters: Arc<Counters>,
    /// Between cache file and kernel.
    buffers: Buffers,
}

impl Front {
    /// A front that orders from `worker`.
    ///
    /// # Errors
    ///
    /// No threads can be started.
    pub fn new(worker: Arc<dyn Worker>, config: FrontConfig) -> std::io::Result<Arc<Self>> {
        let pool = Pool::new("verify", config.threads)?;
        Ok(Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            worker,
            flights: Mutex::new(Flights::new(config.failure_memory)),
            streams: Mutex::default(),
            paces: Mutex::default(),
            deadlines: Deadlines::new(config.deadline),
            pool,
            is_full: AtomicBool::new(false),
            counters: Arc::default(),
            buffers: Buffers::default(),
            config,
        }))
    }

    /// Answers `answer` with the bytes of `pieces`, one after the other: before returning if all are in the cache, else
    /// from another thread.
    pub fn read(&self, pieces: Vec<Piece>, answer: impl FnOnce(Result<&[u8], ReadError>) + Send + 'static) {
        self.read_by(pieces, self.deadline(), answer);
    }

    /// The same, by `until`: what waited for something else before has as much less time.
    pub fn read_by(
        &self,
        pieces: Vec<Piece>,
        until: Instant,
        answer: impl FnOnce(Result<&[u8], ReadError>) + Send + 'static,
    ) {
        let Err((answer, missing)) = read_now(&pieces, &[], &self.buffers, Box::new(answer)) else {
            return self.counters.cached();
        };
        let (counters, begun) = (Arc::clone(&self.counters), Instant::now());
        let counted = move |result: Result<&[u8], ReadError>| {
            counters.waited(begun.elapsed());
            answer(result);
        };
        self.read_after(pieces, missing, until, Vec::new(), Box::new(counted));
    }

    /// What is counted of all reads.
    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Has memory that mounting took be given back as well.
    pub(crate) fn note_mount(&self) {
        self.buffers.note_use();
    }

    /// Lets go of memory that nobody has used since this was last called; whether this is the first time since somebody read.
    pub(crate) fn let_go(&self) -> bool {
        self.buffers.let_go()
    }

    /// Chunks that are on their way.
    pub(crate) fn awaited(&self) -> usize {
        self.flights().len()
    }

    /// When what begins now is to be answered.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.config.deadline
    }

    fn read_after(
        &self,
        pieces: Vec<Piece>,
        missing: Vec<Want>,
        until: Instant,
        mut loose: Vec<Loose>,
        answer: Answer,
    ) {
        let front = Weak::clone(&self.me);
        let again = move |result| match (result, front.upgrade()) {
            (Ok(more), Some(front)) => {
                loose.extend(more);
                // Looked at once more: what arrived may be gone again.
                if let Err((answer, missing)) = read_now(&pieces, &loose, &front.buffers, answer) {
                    front.read_after(pieces, missing, until, loose, answer);
                }
            }
            (Ok(_), None) => {}
            (Err(error), _) => answer(Err(error)),
        };
        self.ensure_until(missing, until, Urgency::Reader, Box::new(again));
    }

    /// Brings chunks into the cache; `done` is called when all are there or one cannot be brought, within the deadline.
    pub fn ensure(&self, wanted: Vec<Want>, done: impl FnOnce(Result<(), ReadError>) + Send + 'static) {
        self.ensure_cached(wanted, Urgency::Reader, done);
    }

    /// The same for what no program waits for yet. Readers go before: while a backend is busy with what they wait for, this
    /// fails, and nothing is tried again.
    pub fn ensure_idle(&self, wanted: Vec<Want>, done: impl FnOnce(Result<(), ReadError>) + Send + 'static) {
        self.ensure_cached(wanted, Urgency::Idle, done);
    }

    fn ensure_cached(
        &self,
        wanted: Vec<Want>,
        urgency: Urgency,
        done: impl FnOnce(Result<(), ReadError>) + Send + 'static,
    ) {
        let done = move |result: Result<Vec<Loose>, ReadError>| {
            let no_room = |Loose { key, .. }: &Loose| ReadError::Chunk {
                key: *key,
                source: ChunkError::Cache("the disk is full".to_owned()),
            };
            done(result.and_then(|loose| loose.first().map_or(Ok(()), |first| Err(no_room(first)))));
        };
        self.ensure_until(wanted, self.deadline(), urgency, Box::new(done));
    }

    fn ensure_until(&self, mut wanted: Vec<Want>, until: Instant, urgency: Urgency, done: Done) {
        wanted.sort_unstable_by_key(Want::key);
        wanted.dedup_by_key(|want| want.key());
        if wanted.is_empty() {
            return done(Ok(Vec::new()));
        }
        let waiter = Arc::new(Waiter::new(wanted.len(), until, urgency, done));
        self.deadlines.watch(&waiter);
        let mut todo = Todo::default();
        let mut flights = self.flights();
        // By blob, since what is missing of one is ordered together.
        for wanted in wanted.chunk_by(|one, other| Arc::ptr_eq(&one.blob, &other.blob)) {
            self.enter(&mut flights, wanted, &waiter, &mut todo);
        }
        drop(flights);
        self.carry_out(todo, &waiter);
    }

    /// Enters chunks of one blob, in order of index, that `waiter` waits for.
    fn enter(&self, flights: &mut Flights, wanted: &[Want], waiter: &Arc<Waiter>, todo: &mut Todo) {
        let Some(Want { blob, .. }) = wanted.first() else { return };
        let mut missing = Vec::new();
        let mut caught_up = None;
        for want in wanted {
            let key = want.key();
            // Looked at again under the lock: an answer that came since the first look will not come again. One that
            // comes after this look finds the flight, since it takes the same lock.
            let state = blob.state(want.chunk);
            if state == ChunkState::Ready {
                todo.ready += 1;
            } else if let Some(flight) = flights.get(key) {
                if waiter.is_reader() && flight.has_failed(self.config.failure_memory) {
                    // As if it had failed for all: a program that retries at once does not wait as long again.
                    todo.failed = Some((key, ChunkError::Late("others have waited for it".to_owned())));
                    continue;
                }
                if waiter.is_reader() && !flight.is_demanded() {
                    todo.hurry.push(key);
                    caught_up = Some(want.chunk);
                }
                flight.wait(waiter);
                // Ordered for an image that is gone, which this one contradicts.
                if let Some(described) = blob.describe(want.chunk)
                    && described.chunk != flight.described.chunk
                {
                    flight.described = described;
                    flight.refused.clear();
                    todo.orders.extend(flight.order_alone(key));
                }
            } else if let Some(error) = flights.failure(key) {
                todo.failed = Some((key, error));
            } else if flights.is_suspect(key) && !waiter.is_reader() {
                // Not for somebody who does not need it.
                todo.failed = Some((key, ChunkError::Deadly));
            } else if let Some(described) = blob.describe(want.chunk) {
                if state == ChunkState::Claimed {
                    todo.claimed.push(key);
                } else if !flights.is_suspect(key) {
                    missing.push((want.chunk, described.chunk.clone()));
                }
                let mut flight = Flight::new(Arc::clone(blob), described);
                flight.wait(waiter);
                flights.insert(key, flight);
                if state == ChunkState::Missing && flights.is_suspect(key) {
                    todo.orders.extend(flights.try_suspect(key));
                }
            } else {
                todo.failed = Some((key, ChunkError::Unknown));
            }
        }
        let orders = self.plan(flights, blob, &missing, waiter.until());
        // Where the reader is, and where what is ordered for it ends.
        let last = orders.last().and_then(|order| Some((*order.demanded.first()?, order.end())));
        todo.orders.extend(orders);
        if !waiter.is_reader() {
            return;
        }
        if let Some((chunk, end)) = last.or(caught_up.map(|chunk| (chunk, chunk))) {
            todo.orders.extend(self.order_further(flights, blob, chunk, end));
        }
    }

    /// Orders beyond what a reader of `chunk` waits for, which ends before `end`, if it goes through the blob in order.
    fn order_further(
        &self,
        flights: &mut Flights,
        blob: &Arc<CachedBlob>,
        chunk: ChunkIndex,
        end: ChunkIndex,
    ) -> Vec<Order> {
        if self.is_full.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Further { from, requests }) = streams.waits(blob.generation(), chunk, end) else {
            return Vec::new();
        };
        let until = Instant::now() + self.config.deadline;
        let mut orders: Vec<Order> = Vec::new();
        let (mut at, mut bytes) = (from, 0);
        // What is there already is passed over, but not for ever.
        let end = ChunkIndex(from.0.saturating_add(PASSED_OVER_LIMIT));
        while orders.len() < requests as usize && bytes < AHEAD_BYTES_MAX && at < end {
            let Some(described) = blob.describe(at) else { break };
            if blob.state(at) == ChunkState::Missing && flights.is_free(self.key(blob, at)) {
                let planned = self.plan(flights, blob, &[(at, described.chunk)], until);
                at = planned.last().map_or(at, Order::end).max(ChunkIndex(at.0 + 1));
                bytes += planned.iter().map(|order| size(&order.stored())).sum::<u64>();
                orders.extend(planned);
            } else {
                at = ChunkIndex(at.0 + 1);
            }
        }
        streams.ordered(blob.generation(), at);
        orders
    }

    fn key(&self, blob: &CachedBlob, chunk: ChunkIndex) -> ChunkKey {
        ChunkKey { blob: blob.id(), generation: blob.generation(), chunk }
    }

    /// Orders for chunks of a blob that are missing, and for what comes along with them.
    fn plan(
        &self,
        flights: &mut Flights,
        blob: &Arc<CachedBlob>,
        missing: &[(ChunkIndex, rafs::blob::Chunk)],
        until: Instant,
    ) -> Vec<Order> {
        let Some(coding) = missing.first().and_then(|(first, _)| blob.describe(*first)) else {
            return Vec::new();
        };
        let key = |chunk| self.key(blob, chunk);
        let found = |chunk| flights.is_free(key(chunk)).then(|| blob.state(chunk));
        let describe = |chunk| blob.describe(chunk).map(|described| described.chunk);
        let requests = plan::plan(missing, describe, found, self.limits(blob.id()));
        let mut orders = Vec::with_capacity(requests.len());
        for extents in requests {
            let order = Order {
                blob: blob.id(),
                generation: blob.generation(),
                coding: Arc::clone(&coding.coding),
                demanded: Vec::new(),
                refused: Vec::new(),
                extents,
                until,
            };
            let alone = order.extents.len() == 1;
            let ordered = Arc::new(Ordered::now(&order));
            let mut demanded = Vec::new();
            for (chunk, described) in order.extents.iter().flat_map(|extent| &extent.chunks) {
                if let Some(flight) = flights.get(key(*chunk)) {
                    // What was ordered for nobody may be given up for that: not a reason to fail who joins.
                    flight.alone = alone && flight.is_demanded();
                    flight.ordered = Some(Arc::clone(&ordered));
                    if flight.is_demanded() {
                        demanded.push(*chunk);
                    }
                } else {
                    let described = crate::cache::Described {
                        coding: Arc::clone(&order.coding),
                        chunk: described.clone(),
                    };
                    let mut flight = Flight::new(Arc::clone(blob), described);
                    flight.ordered = Some(Arc::clone(&ordered));
                    flights.insert(key(*chunk), flight);
                }
            }
            orders.push(Order { demanded, ..order });
        }
        orders
    }

    /// Does what has to be done without the lock.
    fn carry_out(&self, todo: Todo, waiter: &Waiter) {
        if let Some((key, source)) = todo.failed {
            waiter.fail(ReadError::Chunk { key, source });
        }
        (0..todo.ready).for_each(|_| waiter.arrived());
        todo.claimed.into_iter().for_each(|key| self.verify_claim(key, waiter.is_reader()));
        for key in todo.hurry {
            self.pool.promote(key);
            self.worker.hurry(key);
        }
        if !todo.orders.is_empty() {
            self.worker.fetch(todo.orders);
        }
    }

    /// Tries again what failed of these blobs: somebody else has them now.
    pub fn forget_failures(&self, blobs: &[BlobId]) {
        self.flights().forget_failures(|key| blobs.contains(&key.blob));
    }

    fn limits(&self, blob: BlobId) -> Limits {
        // What there is no room for is not read ahead.
        let is_full = self.is_full.load(Ordering::Relaxed);
        let request_bytes =
            if is_full { 1 } else { self.paces().request_bytes(blob, self.config.request_bytes) };
        Limits { request_bytes, ahead_uncompressed_bytes: request_bytes.saturating_mul(4) }
    }

    fn paces(&self) -> MutexGuard<'_, Paces> {
        self.paces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn size(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

/// What follows from wanting chunks.
#[derive(Default)]
struct Todo {
    /// So many are there.
    ready: usize,
    failed: Option<(ChunkKey, ChunkError)>,
    claimed: Vec<ChunkKey>,
    hurry: Vec<ChunkKey>,
    orders: Vec<Order>,
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front").field("flying", &self.flights().len()).finish_non_exhaustive()
    }
}
