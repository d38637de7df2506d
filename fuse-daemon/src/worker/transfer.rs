//! Fetching an order: extents go to the pool as they arrive, from whichever backend delivers them first.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use rafs::blob::Blob;
use tokio::time::{Instant, timeout_at};

use super::WorkerState;
use super::budget::Memory;
use super::decode::Arrived;
use super::race::{Fault, race};
use super::sources::Source;
use super::tickets::Ticket;
use crate::control::BlobId;
use crate::front::{ChunkError, Extent, Order};

/// Uncompressed bytes of extents that are decoded one after the other if they have arrived at the same time: with less, messages and
/// changes of threads take longer than decoding.
pub(super) const TOGETHER_BYTES: u64 = 256 << 10;

/// An extent that is to come, and who is told of its chunks.
struct Awaited {
    extent: Extent,
    tickets: Vec<Ticket>,
}

/// An order while it is fetched.
pub(super) struct Transfer {
    blob: BlobId,
    coding: Arc<Blob>,
    /// By where the stored bytes start.
    awaited: Mutex<BTreeMap<u64, Awaited>>,
    moved: Mutex<Instant>,
    /// Names of the backends that were asked, for messages.
    asked: Mutex<Vec<String>>,
}

impl Transfer {
    fn awaited(&self) -> MutexGuard<'_, BTreeMap<u64, Awaited>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the stored bytes of what is to come are.
    fn extents(&self) -> Vec<Range<u64>> {
        self.awaited().values().map(|awaited| awaited.extent.stored.clone()).collect()
    }

    /// What is to be decoded of an extent that has come, unless another backend delivered it first.
    fn take(&self, start: u64, stored: Bytes, memory: Memory, source: &Source) -> Option<Arrived> {
        let Awaited { extent, tickets } = self.awaited().remove(&start)?;
        let (coding, from) = (Arc::clone(&self.coding), Arc::clone(&source.name));
        Some(Arrived { coding, from, extent, tickets, stored, _memory: memory })
    }

    fn moved(&self) -> Instant {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progressed(&self) {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn asked(&self) -> MutexGuard<'_, Vec<String>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WorkerState {
    /// Fetches an order. Whatever becomes of it, its chunks are answered: those that are not when this ends by a bug, or by
    /// the end of the runtime, are lost.
    pub(super) async fn fetch(self: Arc<Self>, order: Order, transfer: Transfer) {
        let transfer = Arc::new(transfer);
        let sources = self.candidates(order.blob, &order.refused).and_then(|sources| match sources.first() {
            Some(first) if order.demanded.is_empty() && !self.has_time(first, &order) => {
                Err(ChunkError::Fetch(format!("{} is busy with what readers wait for", first.name)))
            }
            _ => Ok(sources),
        });
        let error = match sources {
            Err(error) => error,
            Ok(sources) => match timeout_at(order.until.into(), self.run(&transfer, sources)).await {
                Ok(Ok(())) => return,
                Ok(Err(failures)) => ChunkError::Fetch(failures),
                Err(_) => ChunkError::Late(format!("no answer from {}", transfer.asked().join(", "))),
            },
        };
        let left = std::mem::take(&mut *transfer.awaited());
        for ticket in left.into_values().flat_map(|awaited| awaited.tickets) {
            self.conclude(&ticket, error.clone());
        }
    }

    /// Takes the duty to answer for an order's chunks.
    pub(super) fn accept(self: &Arc<Self>, order: &Order) -> Transfer {
        let awaited = order.extents.iter().map(|extent| {
            let ticket = |chunk| self.ticket(order.key(chunk), order.demanded.contains(&chunk));
            let tickets = extent.chunks.iter().map(|(chunk, _)| ticket(*chunk)).collect();
            (extent.stored.start, Awaited { extent: extent.clone(), tickets })
        });
        Transfer {
            blob: order.blob,
            coding: Arc::clone(&order.coding),
            awaited: Mutex::new(awaited.collect()),
            moved: Mutex::new(Instant::now()),
            asked: Mutex::default(),
        }
    }

    async fn run(
        self: &Arc<Self>,
        transfer: &Arc<Transfer>,
        sources: Vec<Arc<Source>>,
    ) -> Result<(), String> {
        let attempt = |source: Arc<Source>| async move { self.attempt(transfer, &source).await };
        let fault = |source: &Arc<Source>, fault: Fault| match fault {
            Fault::Failed => self.sources.demote(transfer.blob, source),
            Fault::Stalled => self.sources.demote_everywhere(source),
        };
        race(sources, self.config.patience, attempt, || transfer.moved(), fault).await
    }

    /// Reads what is to come from one backend, until nothing is.
    async fn attempt(self: &Arc<Self>, transfer: &Transfer, source: &Arc<Source>) -> Result<(), String> {
        transfer.asked().push(source.name.to_string());
        let extents = transfer.extents();
        let (Some(first), Some(last)) = (extents.first(), extents.last()) else { return Ok(()) };
        let range = first.start..last.end;
        // Of this backend's own share: what waits here waits for its answers to others.
        let permits = self.sources.permits(range.end - range.start);
        let _share = source.share.acquire_many(permits).await.map_err(|error| error.to_string())?;
        let mut stream = source.read(transfer.blob, range.clone());
        let mut memory = self.budget.memory();
        // Grows with what arrives.
        let mut arrived = BytesMut::new();
        let mut at = range.start;
        // Not kept while something is waited for: who is given up then owes nothing.
        let mut together = Vec::new();
        let mut together_bytes = 0;
        for Range { start, end } in extents {
            // Where another backend was faster, extents are missing in between.
            let (gap, len) = (size(start.saturating_sub(at))?, size(end.saturating_sub(start))?);
            if arrived.len() < gap + len {
                self.decode(std::mem::take(&mut together));
                together_bytes = 0;
                let _turn = self.budget.turn(source, gap.saturating_add(len).max(1)).await;
                while arrived.len() < gap + len {
                    let bytes = stream.next().await.ok_or("the answer ended early")?;
                    let bytes = bytes.map_err(|error| error.to_string())?;
                    memory.grow(bytes.len());
                    arrived.extend_from_slice(&bytes);
                    transfer.progressed();
                }
            }
            drop((arrived.split_to(gap), memory.split(gap)));
            let (stored, memory) = (arrived.split_to(len).freeze(), memory.split(len));
            if let Some(extent) = transfer.take(start, stored, memory, source) {
                together_bytes += extent.uncompressed_bytes();
                together.push(extent);
            }
            if together_bytes >= TOGETHER_BYTES {
                self.decode(std::mem::take(&mut together));
                together_bytes = 0;
            }
            at = end;
        }
        self.decode(together);
        Ok(())
    }

    /// Whether a backend can be asked for what nobody waits for yet: half of what may be under way is left to readers.
    fn has_time(&self, source: &Source, order: &Order) -> bool {
        let Range { start, end } = order.stored();
        let wanted = self.sources.permits(end.saturating_sub(start)) as usize;
        source.share.available_permits() >= wanted + self.sources.permits(u64::MAX) as usize / 2
    }

    /// Whom to ask for the blob: not those that delivered it corrupt, unless that was the only one, once.
    fn candidates(&self, blob: BlobId, refused: &[Arc<str>]) -> Result<Vec<Arc<Source>>, ChunkError> {
        let all = self.sources.of(blob);
        if all.is_empty() {
            return Err(ChunkError::Unknown);
        }
        let others: Vec<_> = all.iter().filter(|source| !refused.contains(&source.name)).cloned().collect();
        match (others.is_empty(), refused.len()) {
            (false, _) => Ok(others),
            // A fault on the way may not happen twice.
            (true, 0..=1) => Ok(all),
            (true, _) => Err(ChunkError::Exhausted),
        }
    }
}

fn size(bytes: u64) -> Result<usize, String> {
    usize::try_from(bytes).map_err(|error| error.to_string())
}
