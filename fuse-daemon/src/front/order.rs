//! What is ordered: chunks that are missing with what comes along, and what a reader in order will need next.

use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use rafs::blob::{Chunk, ChunkIndex};

use super::Front;
use super::ahead::{Further, Streams};
use super::flight::{Flight, Flights};
use super::message::{ChunkKey, Order};
use super::pace::{Ordered, Paces};
use super::plan::{self, Limits};
use super::read::Piece;
use crate::cache::{CachedBlob, ChunkState, Described};
use crate::control::BlobId;
use crate::sync::MutexGuard;

/// Chunks that are looked at in search of what to read ahead.
const PASSED_OVER_LIMIT: u32 = 1024;

/// Stored bytes of a request ahead of a reader at most: several are under way at once, and what they take of a backend's share is
/// free again the sooner.
const AHEAD_REQUEST_LIMIT_BYTES: u64 = 2 << 20;

/// Requests that what is ahead of a reader is asked for in at least, once that is much.
const REQUESTS_AHEAD: u64 = 4;

/// Stored bytes of a small file at most: files next to it are small too.
const SMALL_LIMIT_BYTES: u64 = 64 << 10;

/// The unit in which the worker counts what is under way.
const SHARE_BYTES: u64 = 1024;

impl Front {
    /// Follows a reader that found all chunks: what it will need next is ordered before it has to wait for that.
    pub(super) fn follow(&self, pieces: &[Piece]) {
        for (blob, chunk) in pieces.iter().filter_map(Piece::chunk) {
            let is_due = self.streams().reads(blob.generation(), chunk);
            if !is_due || self.room_ahead(blob) == 0 {
                continue;
            }
            let orders = self.order_further(&mut self.flights(), blob, chunk, ChunkIndex(0));
            if !orders.is_empty() {
                self.worker.fetch(orders);
            }
        }
    }

    /// Orders what a reader of `chunk` will need, beyond what it has or what is ordered for it before `end`: if it goes through the blob
    /// in order, or comes from elsewhere to what is far.
    pub(super) fn order_further(
        &self,
        flights: &mut Flights,
        blob: &Arc<CachedBlob>,
        chunk: ChunkIndex,
        end: ChunkIndex,
    ) -> Vec<Order> {
        let reach = self.paces().reach(blob.id(), self.config.request_bytes, self.config.ahead_bytes);
        let further = self.streams().further(blob.generation(), chunk, end, reach);
        match further {
            Further::Begins => self.order_before(flights, blob, chunk),
            Further::Nothing => Vec::new(),
            Further::From { from, window } => self.order_ahead(flights, blob, (chunk, from), window),
        }
    }

    /// Orders from `from` on, until so many stored bytes are ahead of who reads `chunk`.
    fn order_ahead(
        &self,
        flights: &mut Flights,
        blob: &Arc<CachedBlob>,
        (chunk, from): (ChunkIndex, ChunkIndex),
        window: u64,
    ) -> Vec<Order> {
        let mut orders: Vec<Order> = Vec::new();
        let Some(here) = blob.describe(chunk).map(|described| stored(&described.chunk).end) else {
            return orders;
        };
        let limits = self.limits_in_order(blob.id(), window);
        let until = self.deadline().time();
        // What is there already is passed over, but not for ever.
        let last = ChunkIndex(from.0.saturating_add(PASSED_OVER_LIMIT));
        let (mut at, mut edge, mut ordered) = (from, here, 0);
        while at < last {
            let Some(described) = blob.describe(at) else {
                if blob.is_behind_all(at) {
                    self.streams().ended(blob.generation(), chunk);
                    return orders;
                }
                at = ChunkIndex(at.0 + 1);
                continue;
            };
            edge = stored(&described.chunk).start;
            if edge.saturating_sub(here).max(ordered) >= window {
                break;
            }
            if !self.is_orderable(flights, blob, at) {
                at = ChunkIndex(at.0 + 1);
                continue;
            }
            if self.room_ahead(blob) < limits.request_bytes.max(size(&stored(&described.chunk))) {
                break;
            }
            let planned = self.plan(flights, blob, &[(at, described.chunk)], (until, limits));
            at = planned.last().map_or(at, Order::end).max(ChunkIndex(at.0 + 1));
            ordered += planned.iter().map(|order| size(&order.stored())).sum::<u64>();
            orders.extend(planned);
        }
        // Where half of what is to be ahead of it is left; if that is so already, with its next read.
        let half = orders.iter().find(|order| order.stored().start.saturating_add(window / 2) >= edge);
        let mark = match half.and_then(first_of) {
            _ if edge.saturating_sub(here) <= window / 2 => chunk,
            Some(first) => first,
            None => ChunkIndex(chunk.0.midpoint(at.0)),
        };
        self.streams().ordered(blob.generation(), chunk, mark, at);
        orders
    }

    /// Orders what is stored just before `chunk`, if that is a small file of what is far: programs read the files of a directory in any
    /// order, and what is asked for at the same time takes no time.
    fn order_before(&self, flights: &mut Flights, blob: &Arc<CachedBlob>, chunk: ChunkIndex) -> Vec<Order> {
        let limits = self.limits_ahead(blob.id(), u64::MAX);
        let here = blob.describe(chunk).filter(|_| self.paces().is_far(blob.id()));
        let Some(here) = here else { return Vec::new() };
        let here = stored(&here.chunk);
        if size(&here) > SMALL_LIMIT_BYTES || self.room_ahead(blob) < limits.request_bytes {
            return Vec::new();
        }
        let first = here.start.saturating_sub(limits.request_bytes);
        let mut missing = Vec::new();
        for at in (chunk.0.saturating_sub(PASSED_OVER_LIMIT)..chunk.0).rev().map(ChunkIndex) {
            match blob.describe(at) {
                Some(described) if stored(&described.chunk).start >= first => {
                    missing.extend(self.is_orderable(flights, blob, at).then_some((at, described.chunk)));
                }
                Some(_) => break,
                None => {}
            }
        }
        missing.reverse();
        self.plan(flights, blob, &missing, (self.deadline().time(), limits))
    }

    /// Whether a chunk is missing, and nobody works on it.
    fn is_orderable(&self, flights: &Flights, blob: &CachedBlob, chunk: ChunkIndex) -> bool {
        blob.state(chunk) == ChunkState::Missing && flights.is_free(self.key(blob, chunk))
    }

    /// Stored bytes of a blob that may be ordered ahead of readers: what they wait for goes before, and beyond this its backend
    /// is busy.
    fn room_ahead(&self, blob: &CachedBlob) -> u64 {
        if self.is_refused() {
            return 0;
        }
        self.config.ahead_bytes.saturating_sub(self.streams().on_way(blob.generation()))
    }

    pub(super) fn key(&self, blob: &CachedBlob, chunk: ChunkIndex) -> ChunkKey {
        ChunkKey { blob: blob.id(), generation: blob.generation(), chunk }
    }

    /// Orders for chunks of a blob that are missing, and for what comes along with them.
    pub(super) fn plan(
        &self,
        flights: &mut Flights,
        blob: &Arc<CachedBlob>,
        missing: &[(ChunkIndex, Chunk)],
        (until, limits): (Instant, Limits),
    ) -> Vec<Order> {
        let Some(coding) = missing.first().and_then(|(first, _)| blob.describe(*first)) else {
            return Vec::new();
        };
        let key = |chunk| self.key(blob, chunk);
        let found = |chunk| flights.is_free(key(chunk)).then(|| blob.state(chunk));
        let describe = |chunk| blob.describe(chunk).map(|described| described.chunk);
        let requests = plan::plan(missing, describe, found, limits);
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
            let bytes = size(&order.stored()).next_multiple_of(SHARE_BYTES);
            let on_way = self.streams().sets_out(blob.generation(), bytes);
            let ordered = Arc::new(Ordered::now(&order, on_way));
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
                    let described = Described { coding: Arc::clone(&order.coding), chunk: described.clone() };
                    let mut flight = Flight::new(Arc::clone(blob), described);
                    flight.ordered = Some(Arc::clone(&ordered));
                    flights.insert(key(*chunk), flight);
                }
            }
            orders.push(Order { demanded, ..order });
        }
        orders
    }

    /// How large requests of a blob are that a reader waits for.
    pub(super) fn limits(&self, blob: BlobId) -> Limits {
        self.limits_of(self.paces().first_bytes(blob, self.config.request_bytes))
    }

    /// The same of those that no reader waits for, where so many stored bytes are wanted.
    pub(super) fn limits_ahead(&self, blob: BlobId, wanted: u64) -> Limits {
        let most = AHEAD_REQUEST_LIMIT_BYTES.max(self.config.request_bytes);
        self.limits_of(self.paces().request_bytes(blob, self.config.request_bytes).min(most).min(wanted))
    }

    /// The same for a reader in order that is to have so many stored bytes ahead: several requests, and none larger than it takes.
    fn limits_in_order(&self, blob: BlobId, window: u64) -> Limits {
        let part = (window / REQUESTS_AHEAD).min(AHEAD_REQUEST_LIMIT_BYTES);
        let least = self.limits_ahead(blob, window).request_bytes;
        self.limits_of(part.max(least))
    }

    /// What the cache does not take is not read ahead.
    fn limits_of(&self, request_bytes: u64) -> Limits {
        Limits::of(if self.is_refused() { 1 } else { request_bytes })
    }

    pub(super) fn paces(&self) -> MutexGuard<'_, Paces> {
        self.paces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn first_of(order: &Order) -> Option<ChunkIndex> {
    let (first, _) = order.extents.front()?.chunks.first()?;
    Some(*first)
}

fn stored(chunk: &Chunk) -> Range<u64> {
    chunk.compressed_offset..chunk.compressed_offset.saturating_add(chunk.compressed_size.into())
}

fn size(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}
