//! Where a worker in a process of its own reports to: chunks go into the shared memory, and the front is told where they are.

use std::sync::Arc;

use super::message::{ChunkFailure, FromWorker, clip};
use super::wire::Sender;
use crate::front::{BackendName, ChunkError, ChunkKey, Content, Fill, Responses};
use crate::sys::Arena;

/// See the module.
pub(super) struct Report {
    pub(super) arena: Arc<Arena>,
    pub(super) sender: Arc<Sender>,
}

impl Report {
    fn fail(&self, key: ChunkKey, failure: ChunkFailure) {
        self.sender.send(&FromWorker::Failed { chunk: key.into(), failure }, None);
    }
}

impl Responses for Report {
    fn finished(&self, key: ChunkKey, outcome: Result<Content<'_>, ChunkError>) {
        match outcome {
            Ok(Content { bytes, from }) => {
                let mut copy = |memory: &mut [u8]| {
                    memory.copy_from_slice(bytes);
                    Ok(())
                };
                self.arrived(key, bytes.len(), from, &mut copy);
            }
            Err(error) => self.fail(key, error.into()),
        }
    }

    fn arrived(&self, key: ChunkKey, len: usize, from: &BackendName, fill: &mut Fill<'_>) {
        let Some(mut window) = self.arena.take(len) else {
            return self
                .fail(key, ChunkFailure::Fetch { reason: format!("a chunk of {len} bytes is too large") });
        };
        if let Err(reason) = fill(&mut window) {
            return self.fail(key, ChunkFailure::Corrupt { from: from.to_string(), reason: clip(&reason) });
        }
        let at = window.hand_over() as u64;
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.sender.send(&FromWorker::Delivered { chunk: key.into(), at, len, from: from.to_string() }, None);
    }
}
