//! The fallible half: fetches stored bytes by ranges and decodes them.
//!
//! ```text
//!   Order ──> race of backends ──stored bytes──> pool (threads): decode ──> finished
//! ```
//!
//! It has no say in what is fetched, keeps no chunk, and verifies none: see [`crate::front`]. So it may crash, be killed or
//! be taken over, and whoever reads notices no more than a pause.

mod backend;
mod budget;
mod chunk_info;
mod decode;
mod part;
mod race;
mod sources;
mod tally;
#[cfg(test)]
mod tests;
mod tickets;
mod totals;
mod transfer;
mod whole;

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use rafs::blob::Blob;
use rafs::blob::source::{BlobError, MetaParts};
use tokio::runtime::Handle;
use tokio::time::Instant;

pub use backend::{Backend, BackendError, DirectoryBackend, HttpDirectoryBackend, RegistryBackend};
pub(crate) use backend::{Unusable, before_digits, host_of, open_backend};
pub(crate) use part::{ExpectedPart, StoredPart};
pub use sources::Place;
pub(crate) use tally::{REASON_LIMIT, SourceReport};
pub(crate) use totals::{ANSWER_MS, FailureCause, HostCounters, HostTotals};

use crate::control::BlobId;
use crate::front::{ChunkKey, Order, Orders, Responses, Worker};
use crate::pool::Pool;
use budget::Budget;
use chunk_info::ChunkInfos;
use sources::{Source, Sources};
use tickets::Tickets;

/// What a worker may use.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Stored bytes in memory at most, over all backends: beyond it each has one chunk arriving, and one range that is brought
    /// whole, no more. Half of it may be arriving from one backend, half of that in such ranges; a larger one comes
    /// alone. Twice as much may be asked of one backend: what is on its way is nobody's memory.
    pub buffer_bytes: usize,
    /// Threads that decode.
    pub threads: usize,
    /// How long a backend may not get on before another one is asked as well.
    pub patience: Duration,
}

/// A worker with what mounting needs of it as well.
pub trait Fetcher: Worker + 'static {
    /// How a backend is named to it.
    type Backend;
    /// Keeps a backend known for some blobs, until it is dropped.
    type Registration: Send + Sync + 'static;

    /// Names who orders, and is answered; the first call counts.
    ///
    /// # Errors
    ///
    /// The operating system has no thread left.
    fn connect(&self, orders: Weak<dyn Orders>) -> std::io::Result<()>;

    /// Has blobs read from a backend as well. Backends of the same name are one.
    fn register(&self, blobs: &[BlobId], backend: &Self::Backend, place: Place) -> Self::Registration;

    /// What a backend is called, in whatever form it was named: see [`Backend::name`].
    fn name_of(backend: &Self::Backend) -> String;

    /// Asks a backend whether it has a blob that it is registered for.
    ///
    /// # Errors
    ///
    /// Why it has not, or did not say it by then.
    fn has(
        &self,
        blob: BlobId,
        registration: &Self::Registration,
        until: Instant,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// The chunk information of a blob, from whichever backend has it first, not verified: see
    /// [`meta_of`](rafs::blob::source::meta_of).
    ///
    /// # Errors
    ///
    /// [`BlobError`]: nobody has it by then, or it is broken.
    fn chunk_info(
        &self,
        blob: &Blob,
        until: Instant,
    ) -> impl Future<Output = Result<MetaParts, Arc<BlobError>>> + Send;
}

impl Fetcher for LocalWorker {
    type Backend = Arc<dyn Backend>;
    type Registration = Registration;

    fn connect(&self, orders: Weak<dyn Orders>) -> std::io::Result<()> {
        self.answer_to(orders as Weak<dyn Responses>);
        Ok(())
    }

    fn register(&self, blobs: &[BlobId], backend: &Arc<dyn Backend>, place: Place) -> Registration {
        // Of backends whose host nobody asks about.
        self.register_of(&Arc::default(), blobs, backend, place)
    }

    fn name_of(backend: &Arc<dyn Backend>) -> String {
        backend.name()
    }

    async fn has(&self, blob: BlobId, registration: &Registration, until: Instant) -> Result<(), String> {
        match tokio::time::timeout_at(until, registration.has(blob)).await {
            Ok(answer) => answer,
            Err(_) => Err("no answer in time".to_owned()),
        }
    }

    async fn chunk_info(&self, blob: &Blob, until: Instant) -> Result<MetaParts, Arc<BlobError>> {
        let info = self.chunk_info_parts(blob, until).await?;
        Ok(Arc::try_unwrap(info).map_or_else(|shared| shared.parts.clone(), |info| info.parts))
    }
}

/// A worker in this process.
pub struct LocalWorker {
    shared: Arc<WorkerState>,
}

struct WorkerState {
    config: WorkerConfig,
    runtime: Handle,
    sources: Sources,
    tickets: Tickets,
    chunk_infos: ChunkInfos,
    budget: Arc<Budget>,
    pool: Pool,
    responses: OnceLock<Weak<dyn Responses>>,
}

/// Keeps a backend known for some blobs.
pub struct Registration {
    shared: Weak<WorkerState>,
    of_blobs: Vec<(BlobId, Arc<Source>)>,
}

impl Registration {
    /// Asks the backend whether it has a blob.
    pub(crate) fn has(&self, blob: BlobId) -> impl Future<Output = Result<(), String>> + Send + 'static {
        let source = self.of_blobs.iter().find(|(known, _)| *known == blob);
        let source = source.map(|(_, source)| Arc::clone(source));
        async move {
            let source = source.ok_or("it is not registered for this blob")?;
            source.size(blob).await.map(drop).map_err(|error| crate::describe(&error))
        }
    }

    /// How the backend answers. `None`: it is registered for no blob.
    pub(crate) fn report(&self) -> Option<SourceReport> {
        self.of_blobs.first().map(|(_, source)| source.tally.report())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        for (blob, source) in &self.of_blobs {
            shared.sources.remove(*blob, source);
        }
    }
}

impl LocalWorker {
    /// A worker that fetches on `runtime`. It answers to whom [`connect`](Fetcher::connect) names.
    ///
    /// # Errors
    ///
    /// No threads can be started.
    pub fn new(config: WorkerConfig, runtime: Handle) -> std::io::Result<Self> {
        let shared = WorkerState {
            sources: Sources::new(config.buffer_bytes.saturating_mul(2), config.patience),
            tickets: Tickets::default(),
            chunk_infos: ChunkInfos::default(),
            budget: Budget::new(config.buffer_bytes),
            pool: Pool::new("decode", config.threads)?,
            config,
            runtime,
            responses: OnceLock::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// [`register`](Fetcher::register), of a backend whose requests count as those to `host`.
    pub(crate) fn register_of(
        &self,
        host: &Arc<HostCounters>,
        blobs: &[BlobId],
        backend: &Arc<dyn Backend>,
        place: Place,
    ) -> Registration {
        let sources = &self.shared.sources;
        let of_blobs = blobs.iter().map(|blob| (*blob, sources.add(*blob, backend, place, host))).collect();
        Registration { shared: Arc::downgrade(&self.shared), of_blobs }
    }

    /// Names who is answered; the first call counts.
    pub(crate) fn answer_to(&self, responses: Weak<dyn Responses>) {
        let _ = self.shared.responses.set(responses);
    }
}

impl Worker for LocalWorker {
    fn fetch(&self, orders: Vec<Order>) {
        for order in orders {
            let shared = Arc::clone(&self.shared);
            let transfer = shared.accept(&order);
            self.shared.runtime.spawn(shared.fetch(order, transfer));
        }
    }

    fn hurry(&self, chunk: ChunkKey) {
        self.shared.tickets.hurry(chunk);
        self.shared.pool.promote(chunk);
    }
}

impl WorkerState {
    fn respond(&self, answer: impl FnOnce(&dyn Responses)) {
        if let Some(responses) = self.responses.get().and_then(Weak::upgrade) {
            answer(&*responses);
        }
    }
}
