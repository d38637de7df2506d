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
mod order;
mod outage;
mod pace;
mod plan;
mod read;
mod suspects;
#[cfg(test)]
mod tests;
mod wait;

use std::cmp::Reverse;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

pub use message::{
    ArrivedChunk, BackendName, ChunkError, ChunkKey, Content, Extent, Order, Orders, Responses, Worker,
};
pub use outage::Until;
pub use read::{Piece, ReadError};
pub use wait::Want;

use crate::buffers::Buffers;
use crate::cache::ChunkState;
use crate::control::{BlobId, Waiting};
use crate::metrics::Counters;
use crate::pool::Pool;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard};
use ahead::Streams;
use deadline::Deadlines;
use flight::{Flight, Flights};
use outage::Outages;
use pace::Paces;
use read::{ReadAnswer, read_now};
use wait::{Done, Loose, Urgency, Waiter};

/// How the front works.
#[derive(Clone, Debug)]
pub struct FrontConfig {
    /// Time for a read to be answered.
    pub deadline: Duration,
    /// Stored bytes to order at once, chunks that nobody asked for included: so many of what is near, more of what takes
    /// long to answer.
    pub request_bytes: u64,
    /// Stored bytes of a blob that are ordered ahead of readers at most: as much as a worker takes of a backend that readers may
    /// need at any time.
    pub ahead_bytes: u64,
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
    outages: Arc<Outages>,
    pool: Pool,
    /// Whether the last chunk found no room in the cache.
    is_full: AtomicBool,
    /// Whether the cache's disk failed to take the last chunk.
    is_broken: AtomicBool,
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
            outages: Arc::default(),
            pool,
            is_full: AtomicBool::new(false),
            is_broken: AtomicBool::new(false),
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
        until: Until,
        answer: impl FnOnce(Result<&[u8], ReadError>) + Send + 'static,
    ) {
        let Err((answer, missing, urgency)) = read_now(&pieces, &[], &self.buffers, Box::new(answer)) else {
            self.counters.cached();
            return self.follow(&pieces);
        };
        let (counters, begun) = (Arc::clone(&self.counters), Instant::now());
        let counted = move |result: Result<&[u8], ReadError>| {
            counters.waited(begun.elapsed());
            answer(result);
        };
        self.read_after(pieces, (missing, urgency), until, Vec::new(), Box::new(counted));
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

    /// Chunks that programs wait for, those first that are waited for longest: `limit` of them at most.
    pub(crate) fn waiting(&self, limit: usize) -> Vec<Waiting> {
        let mut waiting = self.flights().waiting(self.config.deadline);
        waiting.sort_by_key(|chunk| (Reverse(chunk.since_ms), chunk.blob, chunk.chunk));
        waiting.truncate(limit);
        waiting
    }

    /// Whether a blob's backend takes so long to answer that it is worth to ask for more than is known to be needed.
    pub(crate) fn is_far(&self, blob: BlobId) -> bool {
        self.paces().is_far(blob)
    }

    /// Whether the cache had no room for the last chunk that came.
    fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Whether the cache did not take the last chunk that came: then nothing comes along with what readers wait for.
    pub(crate) fn is_refused(&self) -> bool {
        self.is_full() || self.is_broken.load(Ordering::Relaxed)
    }

    /// When what begins now is to be answered.
    pub fn deadline(&self) -> Until {
        Until::after(self.config.deadline, &self.outages)
    }

    fn read_after(
        &self,
        pieces: Vec<Piece>,
        (missing, urgency): (Vec<Want>, Urgency),
        until: Until,
        mut loose: Vec<Loose>,
        answer: ReadAnswer,
    ) {
        let (front, time) = (Weak::clone(&self.me), until.clone());
        let again = move |result| match (result, front.upgrade()) {
            (Ok(more), Some(front)) => {
                loose.extend(more);
                // Looked at once more: what arrived may be gone again. Not for ever: from now on its bytes are taken as they come.
                if let Err((answer, missing, _)) = read_now(&pieces, &loose, &front.buffers, answer) {
                    front.read_after(pieces, (missing, Urgency::Reread), until, loose, answer);
                }
            }
            (Ok(_), None) => {}
            (Err(error), _) => answer(Err(error)),
        };
        self.ensure_until(missing, time, urgency, Box::new(again));
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
            let no_room = |first: &Loose| Err(ReadError::NoRoom(first.key));
            done(result.and_then(|loose| loose.first().map_or(Ok(()), no_room)));
        };
        self.ensure_until(wanted, self.deadline(), urgency, Box::new(done));
    }

    fn ensure_until(&self, mut wanted: Vec<Want>, until: Until, urgency: Urgency, done: Done) {
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
        for want in wanted {
            let key = want.key();
            // Looked at again under the lock: an answer that came since the first look will not come again. One that
            // comes after this look finds the flight, since it takes the same lock.
            let state = match blob.state(want.chunk) {
                // Brought by somebody else since this reader could not read it, which says nothing of the disk.
                ChunkState::Ready if waiter.takes_bytes() => ChunkState::Missing,
                state => state,
            };
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
        let is_reader = waiter.is_reader();
        let limits = if is_reader { self.limits(blob.id()) } else { self.limits_ahead(blob.id(), u64::MAX) };
        let orders = self.plan(flights, blob, &missing, (waiter.until(), limits));
        // Where the reader is, and where what is ordered for it ends.
        let last = orders.last().and_then(|order| Some((*order.demanded.first()?, order.end())));
        todo.orders.extend(orders);
        if !is_reader {
            return;
        }
        let read = wanted.iter().map(|want| want.chunk);
        let due = read.filter(|chunk| self.streams().reads(blob.generation(), *chunk)).last();
        if let Some((chunk, end)) = last.or(due.map(|chunk| (chunk, chunk))) {
            todo.orders.extend(self.order_further(flights, blob, chunk, end));
        }
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

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
