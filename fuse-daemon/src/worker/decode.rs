//! From stored bytes to chunks. What they are is not verified here: that is the front's part, which believes nobody.

use std::sync::Arc;

use bytes::Bytes;
use rafs::blob::Blob;
use rafs::blob::decode::{Batch, unpack_into};

use super::WorkerState;
use super::budget::Memory;
use super::tickets::Ticket;
use crate::describe;
use crate::front::{BackendName, Extent};
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
    /// Has an extent decoded by the pool.
    pub(super) fn decode(self: &Arc<Self>, arrived: Arrived) {
        let chunks: Vec<_> = arrived.tickets.iter().map(|ticket| ticket.key).collect();
        let demanded = chunks.iter().any(|key| self.tickets.is_demanded(*key));
        let shared = Arc::clone(self);
        self.pool.submit(Job { chunks, run: Box::new(move || shared.decode_now(&arrived)) }, demanded);
    }

    fn decode_now(&self, arrived: &Arrived) {
        let Arrived { coding, from, extent, tickets, stored, .. } = arrived;
        let batch = match extent.chunks.first() {
            Some((_, first)) if first.batch.is_some() => Some(Batch::decode(coding, first, stored)),
            _ => None,
        };
        for (ticket, (_, chunk)) in tickets.iter().zip(&extent.chunks) {
            let mut fill = |content: &mut [u8]| match &batch {
                None => unpack_into(coding, chunk, stored, content).map_err(|error| describe(&error)),
                Some(Ok(batch)) => {
                    content.copy_from_slice(batch.part(chunk).map_err(|error| describe(&error))?);
                    Ok(())
                }
                Some(Err(error)) => Err(describe(error)),
            };
            self.deliver(ticket, chunk.uncompressed_size as usize, from, &mut fill);
        }
    }
}
