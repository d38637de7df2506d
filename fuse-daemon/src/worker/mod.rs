//! The fallible half: fetches stored bytes by ranges, decodes and verifies them, and puts chunks into the cache.
//!
//! ```text
//!   request ──> plan ──> fetch (tokio) ──stored bytes──> pool (threads): decode, verify, write, set bit ──> finished
//!                 └── claimed chunks ───────────────────────> verify in place ─────────────────────────────────┘
//! ```

mod backend;
mod fetch;
mod plan;
mod pool;
mod state;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use rafs::blob::{Blob, BlobIndex, Chunk, ChunkIndex};
use rafs::bootstrap::Bootstrap;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

pub use backend::{Backend, BackendError, DirectoryBackend, RegistryBackend};

use crate::cache::{CachedBlob, ChunkState};
use crate::control::BlobId;
use crate::front::{ChunkError, ChunkKey, Responses, Worker};
use plan::{Limits, Request};
use pool::Pool;
use state::{Entry, State};

/// The format's largest chunk. Compressed ones are smaller: what does not shrink is stored as it is.
const CHUNK_BYTES_LIMIT: u32 = 16 << 20;

/// What a worker may use.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Time to fetch a chunk, with all attempts.
    pub deadline: Duration,
    /// Stored bytes to ask for in one request at most, chunks that nobody asked for included.
    pub request_bytes: u64,
    /// Stored bytes in memory at most, over all requests.
    pub buffer_bytes: usize,
    /// Threads that decode.
    pub threads: usize,
    /// How long a chunk that failed is not tried again.
    pub failure_memory: Duration,
}

/// Where a mounted image has a blob's chunks from.
pub struct Source {
    /// The image's metadata.
    pub bootstrap: Arc<Bootstrap>,
    /// The blob in it.
    pub index: BlobIndex,
    /// Who has the stored bytes.
    pub backend: Arc<dyn Backend>,
    /// Where chunks go.
    pub cached: Arc<CachedBlob>,
}

impl Source {
    fn blob(&self) -> &Blob {
        &self.bootstrap.blobs()[usize::from(self.index.0)]
    }

    /// The chunk, unless the image knows none or says what cannot be.
    fn chunk(&self, chunk: ChunkIndex) -> Option<Chunk> {
        let found = self.bootstrap.chunk(self.index, chunk).ok()?;
        (found.compressed_size.max(found.uncompressed_size) <= CHUNK_BYTES_LIMIT).then_some(found)
    }
}

/// A worker in this process.
pub struct LocalWorker {
    shared: Arc<Shared>,
}

struct Shared {
    config: WorkerConfig,
    runtime: Handle,
    sources: RwLock<BTreeMap<BlobId, Vec<Arc<Source>>>>,
    state: State,
    /// Kibibytes of stored bytes that may still be fetched.
    budget: Arc<Semaphore>,
    pool: Pool,
    responses: OnceLock<Weak<dyn Responses>>,
}

/// Keeps a source registered.
pub struct Registration {
    shared: Weak<Shared>,
    source: Arc<Source>,
}

impl Registration {
    /// The blob.
    pub fn blob(&self) -> BlobId {
        self.source.cached.id()
    }

    /// The same chunks from another backend; `None` if the worker has ended.
    pub fn with_backend(&self, backend: &Arc<dyn Backend>) -> Option<Self> {
        let Source { bootstrap, index, cached, .. } = &*self.source;
        let source = Source {
            bootstrap: Arc::clone(bootstrap),
            index: *index,
            backend: Arc::clone(backend),
            cached: Arc::clone(cached),
        };
        Some(LocalWorker { shared: self.shared.upgrade()? }.register(source))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut sources = shared.sources.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_blob) = sources.get_mut(&self.source.cached.id()) {
            of_blob.retain(|source| !Arc::ptr_eq(source, &self.source));
            if of_blob.is_empty() {
                sources.remove(&self.source.cached.id());
            }
        }
    }
}

impl LocalWorker {
    /// A worker that fetches on `runtime`. It answers to whom [`connect`](Self::connect) names.
    ///
    /// # Errors
    ///
    /// No threads are to be had.
    pub fn new(config: WorkerConfig, runtime: Handle) -> std::io::Result<Self> {
        let shared = Shared {
            budget: Arc::new(Semaphore::new(config.buffer_bytes.div_ceil(1024).max(1))),
            pool: Pool::new(config.threads)?,
            state: State::new(config.failure_memory, config.deadline * 2),
            config,
            runtime,
            sources: RwLock::default(),
            responses: OnceLock::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Names who is answered; the first call counts.
    pub fn connect(&self, responses: Weak<dyn Responses>) {
        let _ = self.shared.responses.set(responses);
    }

    /// Makes a blob's chunks known until the registration is dropped.
    pub fn register(&self, source: Source) -> Registration {
        let source = Arc::new(source);
        let mut sources = self.shared.sources.write().unwrap_or_else(PoisonError::into_inner);
        // The newest first: its bootstrap came from there a moment ago, so it is most likely to answer.
        sources.entry(source.cached.id()).or_default().insert(0, Arc::clone(&source));
        Registration { shared: Arc::downgrade(&self.shared), source }
    }
}

impl Worker for LocalWorker {
    fn request(&self, chunks: &[ChunkKey]) {
        let mut sorted = chunks.to_vec();
        sorted.sort_unstable();
        for of_blob in sorted.chunk_by(|one, other| one.blob == other.blob) {
            self.shared.request(of_blob[0].blob, of_blob);
        }
    }
}

impl Shared {
    fn sources(&self, blob: BlobId) -> Vec<Arc<Source>> {
        self.sources.read().unwrap_or_else(PoisonError::into_inner).get(&blob).cloned().unwrap_or_default()
    }

    /// Asks others before this source from now on, since it failed.
    fn demote(&self, failed: &Arc<Source>) {
        let mut sources = self.sources.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_blob) = sources.get_mut(&failed.cached.id())
            && let Some(place) = of_blob.iter().position(|source| Arc::ptr_eq(source, failed))
        {
            of_blob[place..].rotate_left(1);
        }
    }

    /// Chunks of one blob, in order.
    fn request(self: &Arc<Self>, blob: BlobId, keys: &[ChunkKey]) {
        let sources = self.sources(blob);
        let Some(source) = sources.first() else {
            return keys.iter().for_each(|key| self.respond(*key, Err(ChunkError::Unknown)));
        };
        let mut answers = Vec::new();
        let mut claimed = Vec::new();
        let mut missing = Vec::new();
        let mut state = self.state.lock();
        for &key in keys {
            match (source.cached.state(key.chunk), state.enter(key, true)) {
                (ChunkState::Ready, entry) => {
                    if matches!(entry, Entry::New) {
                        state.leave(key);
                    }
                    answers.push((key, Ok(())));
                }
                (_, Entry::InFlight) => self.pool.promote(key),
                (_, Entry::Failed(error)) => answers.push((key, Err(error))),
                (found, Entry::New) => match source.chunk(key.chunk) {
                    Some(chunk) if found == ChunkState::Claimed => claimed.push((key, chunk)),
                    Some(chunk) => missing.push((key.chunk, chunk)),
                    None => {
                        state.leave(key);
                        answers.push((key, Err(ChunkError::Unknown)));
                    }
                },
            }
        }
        let found = |chunk| state.is_free(ChunkKey { blob, chunk }).then(|| source.cached.state(chunk));
        let requests = plan::plan(&missing, |chunk| source.chunk(chunk), found, self.limits());
        for (chunk, _) in
            requests.iter().flat_map(|request| &request.extents).flat_map(|extent| &extent.chunks)
        {
            state.enter(ChunkKey { blob, chunk: *chunk }, false);
        }
        drop(state);
        answers.into_iter().for_each(|(key, answer)| self.respond(key, answer));
        for (key, chunk) in claimed {
            self.verify_claim(Arc::clone(source), key, chunk);
        }
        for request in requests {
            self.fetch(sources.clone(), request);
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            request_bytes: self.config.request_bytes,
            ahead_uncompressed_bytes: self.config.request_bytes.saturating_mul(4),
        }
    }

    fn respond(&self, key: ChunkKey, outcome: Result<(), ChunkError>) {
        if let Some(responses) = self.responses.get().and_then(Weak::upgrade) {
            responses.finished(key, outcome);
        }
    }

    /// The chunk is in the cache, or is not to be had.
    fn conclude(&self, key: ChunkKey, outcome: Result<(), ChunkError>) {
        self.state.lock().conclude(key, outcome.as_ref().err());
        self.respond(key, outcome);
    }
}

/// The extents of a request that readers wait for, each as a request of its own.
fn demanded_alone(request: &Request, state: &State, blob: BlobId) -> (Vec<Request>, Vec<ChunkKey>) {
    let mut again = Vec::new();
    let mut given_up = Vec::new();
    let state = state.lock();
    for extent in &request.extents {
        let keys: Vec<ChunkKey> =
            extent.chunks.iter().map(|(chunk, _)| ChunkKey { blob, chunk: *chunk }).collect();
        if keys.iter().any(|key| state.is_demanded(*key)) {
            again.push(Request { extents: [extent.clone()].into() });
        } else {
            given_up.extend(keys);
        }
    }
    (again, given_up)
}
