//! Fetching: one request to the backend, whose extents go to the pool as they arrive.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use super::plan::{Extent, Request};
use super::pool::Job;
use super::{Shared, Source, demanded_alone};
use crate::front::{ChunkError, ChunkKey};

/// How often a chunk is fetched when what arrives is corrupt: a fault on the way may not happen twice.
const ATTEMPTS: u32 = 2;

/// An extent that arrived.
pub(super) struct Arrived {
    pub(super) sources: Vec<Arc<Source>>,
    pub(super) extent: Extent,
    pub(super) stored: Bytes,
    pub(super) attempt: u32,
    pub(super) deadline: Instant,
    /// The part of the budget that `stored` takes.
    pub(super) _permit: Arc<OwnedSemaphorePermit>,
}

impl Shared {
    /// Fetches a request's extents, which are entered in the state, from the first source that has them.
    pub(super) fn fetch(self: &Arc<Self>, sources: Vec<Arc<Source>>, request: Request) {
        let deadline = Instant::now() + self.config.deadline;
        self.spawn_fetch(sources, request, 1, deadline);
    }

    fn spawn_fetch(
        self: &Arc<Self>,
        sources: Vec<Arc<Source>>,
        request: Request,
        attempt: u32,
        deadline: Instant,
    ) {
        let shared = Arc::clone(self);
        self.runtime.spawn(async move { shared.run_fetch(sources, request, attempt, deadline).await });
    }

    async fn run_fetch(
        self: Arc<Self>,
        sources: Vec<Arc<Source>>,
        mut request: Request,
        attempt: u32,
        deadline: Instant,
    ) {
        let merged = request.extents.len() > 1;
        let mut failure = String::new();
        for (source, left) in sources.iter().zip((1..=sources.len()).rev()) {
            // What remains of the time is shared with the sources behind it.
            let share = deadline.saturating_duration_since(Instant::now()) / u32::try_from(left).unwrap_or(1);
            let run = self.transfer(&sources, source, &mut request, attempt, deadline);
            failure = match timeout(share, run).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(_) => format!("no answer within {share:?}"),
            };
            self.demote(source);
        }
        let blob = sources[0].cached.id();
        if merged && Instant::now() < deadline {
            // What was read ahead may be what cannot be had: readers do not suffer for it.
            let (again, given_up) = demanded_alone(&request, &self.state, blob);
            let error = ChunkError::Fetch(failure);
            given_up.into_iter().for_each(|key| self.conclude(key, Err(error.clone())));
            for request in again {
                self.spawn_fetch(sources.clone(), request, attempt, deadline);
            }
            return;
        }
        let stored = request.stored();
        tracing::error!(%blob, chunks = ?indexes(&request), from = stored.start, to = stored.end, failure, "cannot fetch");
        for key in keys(&sources[0], request.extents.iter()) {
            self.conclude(key, Err(ChunkError::Fetch(failure.clone())));
        }
    }

    /// Reads the request's bytes; extents that arrived are taken out of it, so that what is left when this fails or is
    /// cancelled is what did not arrive.
    async fn transfer(
        self: &Arc<Self>,
        sources: &[Arc<Source>],
        source: &Arc<Source>,
        request: &mut Request,
        attempt: u32,
        deadline: Instant,
    ) -> Result<(), String> {
        let stored = request.stored();
        let permit = self.reserve(stored.end - stored.start).await?;
        let mut stream = source.backend.read(source.cached.id(), stored.clone());
        // Grows with what arrives.
        let mut arrived = BytesMut::new();
        while let Some(extent) = request.extents.front() {
            let len = usize::try_from(extent.stored.end - extent.stored.start)
                .map_err(|error| error.to_string())?;
            while arrived.len() < len {
                match stream.next().await {
                    Some(bytes) => arrived.extend_from_slice(&bytes.map_err(|error| error.to_string())?),
                    None => return Err("the answer ended early".to_owned()),
                }
            }
            let Some(extent) = request.extents.pop_front() else { break };
            self.submit(Arrived {
                sources: sources.to_vec(),
                stored: arrived.copy_to_bytes(len),
                extent,
                attempt,
                deadline,
                _permit: Arc::clone(&permit),
            });
        }
        Ok(())
    }

    async fn reserve(&self, bytes: u64) -> Result<Arc<OwnedSemaphorePermit>, String> {
        // A single chunk that is larger than the budget gets all of it.
        let most = self.config.buffer_bytes.div_ceil(1024).max(1);
        let wanted = usize::try_from(bytes.div_ceil(1024)).unwrap_or(most).clamp(1, most);
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.budget).acquire_many_owned(wanted).await;
        permit.map(Arc::new).map_err(|error| error.to_string())
    }

    fn submit(self: &Arc<Self>, arrived: Arrived) {
        let keys = keys(&arrived.sources[0], [&arrived.extent]);
        let demanded = {
            let state = self.state.lock();
            keys.iter().any(|key| state.is_demanded(*key))
        };
        let shared = Arc::clone(self);
        self.pool.submit(Job { chunks: keys, run: Box::new(move || shared.store(arrived)) }, demanded);
    }

    /// Fetches an extent again that was corrupt; `false` if that was done often enough.
    pub(super) fn fetch_again(self: &Arc<Self>, arrived: &Arrived, extent: Extent) -> bool {
        if arrived.attempt >= ATTEMPTS || Instant::now() >= arrived.deadline {
            return false;
        }
        let mut sources = arrived.sources.clone();
        // Another source first, if there is one.
        sources.rotate_left(1);
        let request = Request { extents: [extent].into() };
        self.spawn_fetch(sources, request, arrived.attempt + 1, arrived.deadline);
        true
    }
}

fn keys<'a>(source: &Source, extents: impl IntoIterator<Item = &'a Extent>) -> Vec<ChunkKey> {
    let blob = source.cached.id();
    extents
        .into_iter()
        .flat_map(|extent| &extent.chunks)
        .map(|(chunk, _)| ChunkKey { blob, chunk: *chunk })
        .collect()
}

fn indexes(request: &Request) -> Vec<u32> {
    request.extents.iter().flat_map(|extent| &extent.chunks).map(|(chunk, _)| chunk.0).collect()
}
