//! Chunks that are on their way, each once however many wait for it, and what failed lately.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::message::{BackendName, ChunkError, ChunkKey, Extent, Order};
use super::pace::Ordered;
use super::suspects::Suspects;
use super::wait::Waiter;
use crate::cache::{CachedBlob, Described};
use crate::control::Waiting;

/// How long a chunk that workers end over is not tried again: each attempt costs all readers one of them.
const DEADLY_MEMORY: Duration = Duration::from_secs(600);

/// Failures that are remembered at most; beyond, the memory is cleared, at the price of some repeated attempts.
const FAILURES_LIMIT: usize = 4096;

/// A chunk on its way into the cache.
pub(super) struct Flight {
    /// Where it goes: files of the generation that it was ordered for.
    pub(super) blob: Arc<CachedBlob>,
    /// What it has to be.
    pub(super) described: Described,
    /// Who waits for it; nobody, if it comes along with others.
    pub(super) waiters: Vec<Arc<Waiter>>,
    /// When the time of a reader was over who is no longer among the waiters, the last one's.
    given_up: Option<Instant>,
    /// Backends that delivered it corrupt, and how the last one did.
    pub(super) refused: Vec<BackendName>,
    pub(super) corrupt: Option<String>,
    /// Whether it was ordered without others: where they come together, it may be one of the others that fails.
    pub(super) alone: bool,
    /// How often the worker lost it.
    pub(super) lost: u32,
    /// What it was ordered with, for the time that it takes; not if it was ordered again.
    pub(super) ordered: Option<Arc<Ordered>>,
}

impl Flight {
    pub(super) fn new(blob: Arc<CachedBlob>, described: Described) -> Self {
        Self {
            blob,
            described,
            waiters: Vec::new(),
            given_up: None,
            refused: Vec::new(),
            corrupt: None,
            alone: false,
            lost: 0,
            ordered: None,
        }
    }

    /// Somebody waits for it from now on.
    pub(super) fn wait(&mut self, waiter: &Arc<Waiter>) {
        self.waiters.push(Arc::clone(waiter));
    }

    /// Whether a reader waits for it.
    pub(super) fn is_demanded(&self) -> bool {
        self.waiters.iter().any(|waiter| waiter.is_reader())
    }

    /// What is told of it while readers wait who have `deadline` from the moment on that they began.
    fn waiting(&self, key: ChunkKey, deadline: Duration, now: Instant) -> Option<Waiting> {
        let readers = self.waiters.iter().filter(|waiter| waiter.is_reader() && !waiter.is_answered());
        let left = |waiter: &Arc<Waiter>| waiter.until().saturating_duration_since(now);
        let waited = |waiter| deadline.saturating_sub(left(waiter));
        let waited: Vec<Duration> = readers.map(waited).collect();
        Some(Waiting {
            blob: key.blob,
            chunk: key.chunk.0,
            readers: waited.len() as u64,
            since_ms: waited.iter().max()?.as_millis().try_into().unwrap_or(u64::MAX),
            refused: self.corrupt.clone(),
        })
    }

    /// Whether some reader's time was over less than `memory` ago, though others still wait.
    pub(super) fn has_failed(&self, memory: Duration) -> bool {
        let now = Instant::now();
        self.last_over(now).is_some_and(|over| now - over < memory)
    }

    /// When a reader's time was over, the last one's.
    fn last_over(&self, now: Instant) -> Option<Instant> {
        let readers = self.waiters.iter().filter(|waiter| waiter.is_reader());
        let over = readers.map(|waiter| waiter.until()).filter(|until| *until <= now);
        over.chain(self.given_up).max()
    }

    /// Takes those out for whom `gone` holds.
    pub(super) fn let_go(&mut self, gone: impl Fn(&Waiter) -> bool) -> Vec<Arc<Waiter>> {
        self.given_up = self.last_over(Instant::now());
        let (gone, left) = self.waiters.drain(..).partition(|waiter| gone(waiter));
        self.waiters = left;
        gone
    }

    /// The order for it alone; `None` if no reader waits for it any longer.
    pub(super) fn order_alone(&mut self, key: ChunkKey) -> Option<Order> {
        self.let_go(Waiter::is_answered);
        let readers = self.waiters.iter().filter(|waiter| waiter.is_reader());
        let until = readers.map(|waiter| waiter.until()).max()?;
        self.alone = true;
        self.ordered = None;
        let chunk = self.described.chunk.clone();
        let end = chunk.compressed_offset.saturating_add(chunk.compressed_size.into());
        let extent = Extent { stored: chunk.compressed_offset..end, chunks: vec![(key.chunk, chunk)] };
        Some(Order {
            blob: key.blob,
            generation: key.generation,
            coding: Arc::clone(&self.described.coding),
            extents: [extent].into(),
            demanded: vec![key.chunk],
            refused: self.refused.clone(),
            until,
        })
    }
}

/// A chunk that is no longer on its way, and who waited for it.
pub(super) type Left = (ChunkKey, Vec<Arc<Waiter>>);

/// What follows from the end of a flight.
pub(super) struct Landed {
    /// Who waited for it.
    pub(super) waiters: Vec<Arc<Waiter>>,
    /// What had waited for its end.
    pub(super) order: Option<Order>,
    /// What would have been next, but no reader waits for it any longer.
    pub(super) left: Vec<Left>,
}

/// See the module.
pub(super) struct Flights {
    flying: HashMap<ChunkKey, Flight>,
    failed: HashMap<ChunkKey, (Instant, ChunkError)>,
    memory: Duration,
    suspects: Suspects,
}

impl Flights {
    /// Failures are remembered for `memory`.
    pub(super) fn new(memory: Duration) -> Self {
        Self { flying: HashMap::new(), failed: HashMap::new(), memory, suspects: Suspects::default() }
    }

    pub(super) fn get(&mut self, key: ChunkKey) -> Option<&mut Flight> {
        self.flying.get_mut(&key)
    }

    pub(super) fn insert(&mut self, key: ChunkKey, flight: Flight) {
        self.flying.insert(key, flight);
    }

    /// Orders for all that readers wait for. The rest is no longer on its way: whoever wants it orders it. With it, who waits for
    /// that though no reader does.
    pub(super) fn order_again(&mut self) -> (Vec<Order>, Vec<Left>) {
        let (mut orders, mut left) = (Vec::new(), Vec::new());
        let suspects = &mut self.suspects;
        self.flying.retain(|key, flight| match flight.order_alone(*key) {
            Some(order) => {
                orders.extend(suspects.may_go(*key).then_some(order));
                true
            }
            None => {
                left.push((*key, std::mem::take(&mut flight.waiters)));
                false
            }
        });
        for index in 0..left.len() {
            let next = self.suspects.over(left[index].0, false);
            orders.extend(self.order_suspect(next, &mut left));
        }
        (orders, left)
    }

    /// A worker ended that owed these: those that are to be given up.
    pub(super) fn blame(&mut self, owed: &[ChunkKey]) -> Vec<ChunkKey> {
        self.suspects.blame(owed)
    }

    /// Whether several workers in a row ended that owed the chunk.
    pub(super) fn is_suspect(&self, key: ChunkKey) -> bool {
        self.suspects.contains(key)
    }

    /// The order for a suspect that a reader waits for, if it need not wait for another one.
    pub(super) fn try_suspect(&mut self, key: ChunkKey) -> Option<Order> {
        if self.suspects.may_go(key) { self.flying.get_mut(&key)?.order_alone(key) } else { None }
    }

    /// The order for the suspect whose turn it is, or for the next one that somebody still reads.
    fn order_suspect(&mut self, mut next: Option<ChunkKey>, left: &mut Vec<Left>) -> Option<Order> {
        while let Some(key) = next {
            let order = self.flying.get_mut(&key).and_then(|flight| flight.order_alone(key));
            if order.is_some() {
                return order;
            }
            left.extend(self.flying.remove(&key).map(|flight| (key, flight.waiters)));
            next = self.suspects.over(key, false);
        }
        None
    }

    pub(super) fn len(&self) -> usize {
        self.flying.len()
    }

    /// What readers wait for, who have `deadline` from the moment on that they began.
    pub(super) fn waiting(&self, deadline: Duration) -> Vec<Waiting> {
        let now = Instant::now();
        self.flying.iter().filter_map(|(key, flight)| flight.waiting(*key, deadline, now)).collect()
    }

    /// Why the chunk is not to be tried again yet.
    pub(super) fn failure(&mut self, key: ChunkKey) -> Option<ChunkError> {
        let (since, error) = self.failed.get(&key)?;
        let memory = if *error == ChunkError::Deadly { DEADLY_MEMORY } else { self.memory };
        if since.elapsed() < memory {
            return Some(error.clone());
        }
        self.failed.remove(&key);
        None
    }

    /// Whether the chunk is not on its way, has not failed lately, and may come along with others.
    pub(super) fn is_free(&self, key: ChunkKey) -> bool {
        !self.flying.contains_key(&key) && !self.failed.contains_key(&key) && !self.is_suspect(key)
    }

    /// The flight is over: whom to tell, and what may be ordered now.
    pub(super) fn land(&mut self, key: ChunkKey, error: Option<&ChunkError>) -> Landed {
        let next = self.suspects.over(key, error.is_none());
        let mut left = Vec::new();
        let order = self.order_suspect(next, &mut left);
        Landed { waiters: self.remove(key, error), order, left }
    }

    fn remove(&mut self, key: ChunkKey, error: Option<&ChunkError>) -> Vec<Arc<Waiter>> {
        let Some(flight) = self.flying.remove(&key) else { return Vec::new() };
        // A failure ahead of any reader is no reason to refuse the first one.
        if let (Some(error), true) = (error, flight.is_demanded()) {
            if self.failed.len() >= FAILURES_LIMIT {
                self.failed.clear();
            }
            self.failed.insert(key, (Instant::now(), error.clone()));
        }
        flight.waiters
    }

    /// Forgets failures of chunks that `of` names: somebody else may have them.
    pub(super) fn forget_failures(&mut self, is_meant: impl Fn(ChunkKey) -> bool) {
        self.failed.retain(|key, _| !is_meant(*key));
    }
}
