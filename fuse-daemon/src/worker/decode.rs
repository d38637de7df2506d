//! From stored bytes to chunks. What they are is not verified here: that is the front's part, which believes nobody.

use std::sync::Arc;

use bytes::Bytes;
use rafs::blob::Blob;
use rafs::blob::decode::{Batch, DecodeError, unpack_into};

use super::WorkerState;
use super::budget::Memory;
use super::tickets::Ticket;
use crate::describe;
use crate::front::{ArrivedChunk, BackendName, Extent};
use crate::pool::Job;

/// An extent that arrived.
pub(super) struct Arrived {
    pub(super) coding: Arc<Blob>,
    pub(super) from: BackendName,
    pub(super) extent: Extent,
    /// In order of the extent's chunks.
    pub(super) tickets: Vec<Ticket>,
    pub(super) stored: Bytes,
    /// What `stored` takes, until it is decoded.
    pub(super) _memory: Memory,
}

impl WorkerState {
    /// Has extents of one backend decoded by the pool: those that a reader waits for apart from the others.
    pub(super) fn decode(self: &Arc<Self>, arrived: Vec<Arrived>) {
        let is_demanded =
            |arrived: &Arrived| arrived.tickets.iter().any(|ticket| self.tickets.is_demanded(ticket.key));
        let (demanded, ahead): (Vec<_>, Vec<_>) = arrived.into_iter().partition(is_demanded);
        for (extents, is_demanded) in [(demanded, true), (ahead, false)] {
            if extents.is_empty() {
                continue;
            }
            let chunks = extents.iter().flat_map(|extent| &extent.tickets).map(|ticket| ticket.key).collect();
            let shared = Arc::clone(self);
            let run = Box::new(move || shared.decode_now(&extents));
            self.pool.submit(Job { chunks, run }, is_demanded);
        }
    }

    fn decode_now(&self, extents: &[Arrived]) {
        let Some(Arrived { from, .. }) = extents.first() else { return };
        let batches: Vec<_> = extents.iter().map(Arrived::batch).collect();
        let arrivals =
            extents.iter().zip(&batches).flat_map(|(arrived, batch)| arrived.arrivals(batch.as_ref()));
        self.deliver(from, arrivals.collect());
    }
}

impl Arrived {
    /// The bytes of all chunks that it holds.
    pub(super) fn uncompressed_bytes(&self) -> u64 {
        self.extent.chunks.iter().map(|(_, chunk)| u64::from(chunk.uncompressed_size)).sum()
    }

    fn batch(&self) -> Option<Result<Batch, DecodeError>> {
        let (_, first) = self.extent.chunks.first().filter(|(_, first)| first.batch.is_some())?;
        Some(Batch::decode(&self.coding, first, &self.stored))
    }

    /// Its chunks, of which each is decoded out of `batch`, if it is one.
    fn arrivals<'a>(
        &'a self,
        batch: Option<&'a Result<Batch, DecodeError>>,
    ) -> impl Iterator<Item = (&'a Ticket, ArrivedChunk<'a>)> {
        self.tickets.iter().zip(&self.extent.chunks).map(move |(ticket, (_, chunk))| {
            let fill = move |content: &mut [u8]| match batch {
                None => {
                    unpack_into(&self.coding, chunk, &self.stored, content).map_err(|error| describe(&error))
                }
                Some(Ok(batch)) => {
                    content.copy_from_slice(batch.part(chunk).map_err(|error| describe(&error))?);
                    Ok(())
                }
                Some(Err(error)) => Err(describe(error)),
            };
            let len = chunk.uncompressed_size as usize;
            (ticket, ArrivedChunk { chunk: ticket.key, len, fill: Box::new(fill) })
        })
    }
}
