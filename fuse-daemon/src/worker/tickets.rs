//! Chunks that were ordered and not answered yet: each is answered once, whatever happens to the work on it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::WorkerState;
use crate::front::{ArrivedChunk, BackendName, ChunkError, ChunkKey};

/// All tickets of a worker.
#[derive(Default)]
pub(super) struct Tickets(Mutex<TicketTable>);

#[derive(Default)]
struct TicketTable {
    next: u64,
    open: HashMap<ChunkKey, OpenTicket>,
}

#[derive(Clone, Copy)]
struct OpenTicket {
    /// The ticket's: a chunk that was answered may be ordered again while the old work is still being put away.
    number: u64,
    /// Whether a reader waits for it.
    demanded: bool,
}

/// The duty to answer for a chunk. Dropped without an answer, as by a panic, it says that the chunk was lost.
pub(super) struct Ticket {
    shared: Weak<WorkerState>,
    pub(super) key: ChunkKey,
    number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade()
            && shared.tickets.close(self.key, self.number)
        {
            shared.respond(|responses| responses.finished(self.key, Err(ChunkError::Lost)));
        }
    }
}

impl Tickets {
    fn lock(&self) -> MutexGuard<'_, TicketTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, key: ChunkKey, demanded: bool) -> u64 {
        let mut inner = self.lock();
        inner.next += 1;
        let number = inner.next;
        inner.open.insert(key, OpenTicket { number, demanded });
        number
    }

    fn is_open(&self, key: ChunkKey, number: u64) -> bool {
        self.lock().open.get(&key).is_some_and(|open| open.number == number)
    }

    /// Whether it was open.
    fn close(&self, key: ChunkKey, number: u64) -> bool {
        let mut inner = self.lock();
        let is_open = inner.open.get(&key).is_some_and(|open| open.number == number);
        if is_open {
            inner.open.remove(&key);
        }
        is_open
    }

    /// A reader waits for the chunk now.
    pub(super) fn hurry(&self, key: ChunkKey) {
        if let Some(open) = self.lock().open.get_mut(&key) {
            open.demanded = true;
        }
    }

    /// Whether a reader waits for the chunk.
    pub(super) fn is_demanded(&self, key: ChunkKey) -> bool {
        self.lock().open.get(&key).is_some_and(|open| open.demanded)
    }
}

impl WorkerState {
    pub(super) fn ticket(self: &Arc<Self>, key: ChunkKey, demanded: bool) -> Ticket {
        Ticket { shared: Arc::downgrade(self), key, number: self.tickets.open(key, demanded) }
    }

    /// Answers for a chunk that cannot be had, unless that was done.
    pub(super) fn conclude(&self, ticket: &Ticket, error: ChunkError) {
        if self.tickets.is_open(ticket.key, ticket.number) {
            self.respond(|responses| responses.finished(ticket.key, Err(error)));
            self.tickets.close(ticket.key, ticket.number);
        }
    }

    /// Answers for chunks that have arrived together, except for those for which that was done.
    pub(super) fn deliver(&self, from: &BackendName, mut chunks: Vec<(&Ticket, ArrivedChunk<'_>)>) {
        chunks.retain(|(ticket, _)| self.tickets.is_open(ticket.key, ticket.number));
        let (tickets, arrivals): (Vec<_>, _) = chunks.into_iter().unzip();
        self.respond(|responses| responses.arrived(from, arrivals));
        // Only now: were an answer to end in a bug, the chunks would be lost.
        tickets.iter().for_each(|ticket| _ = self.tickets.close(ticket.key, ticket.number));
    }
}
