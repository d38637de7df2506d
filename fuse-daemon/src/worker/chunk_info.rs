//! Chunk information that a bootstrap lacks, out of the blobs' tails: of blobs with batches, and of all blobs where there is
//! no chunk table.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared as SharedFuture, WeakShared};
use rafs::blob::Blob;
use rafs::blob::source::{BlobError, BlobSource, MetaParts, digests_limit, read_meta_parts};
use tokio::time::{Instant, timeout_at};

use super::race::race;
use super::sources::Source;
use super::whole::{HeldWhole, WrongSources};
use super::{LocalWorker, WorkerState};
use crate::control::BlobId;

type Outcome = Result<Arc<ChunkInfo>, Arc<BlobError>>;
type InfoFlight = BoxFuture<'static, Outcome>;

/// What is being read, by blob as it is described: images may describe it differently.
#[derive(Default)]
pub(super) struct ChunkInfos(Mutex<Vec<(Blob, WeakShared<InfoFlight>)>>);

/// The chunk information of a blob, not verified, and what it has of the worker's memory.
pub(crate) struct ChunkInfo {
    pub(crate) parts: MetaParts,
    _held: Option<HeldWhole>,
}

impl LocalWorker {
    /// The chunk information of a blob, from whichever backend has it first, not verified; read once for all who ask at the
    /// same time.
    ///
    /// # Errors
    ///
    /// [`BlobError`]: nobody has it by then, or it is broken.
    pub(crate) async fn chunk_info_parts(&self, blob: &Blob, until: Instant) -> Outcome {
        loop {
            let (flight, joined) = self.shared.chunk_info(blob, until);
            match timeout_at(until, flight).await {
                // The deadline that it ran into, if it did, was another's.
                Ok(Err(_)) if joined => {}
                Ok(outcome) => return outcome,
                Err(_) => {
                    let late = "its chunk information did not arrive in time";
                    let source = io::Error::new(io::ErrorKind::TimedOut, late);
                    return Err(Arc::new(BlobError::Io { blob: name(blob), source }));
                }
            }
        }
    }
}

impl WorkerState {
    /// What reads it, and whether somebody else had begun to.
    fn chunk_info(self: &Arc<Self>, blob: &Blob, until: Instant) -> (SharedFuture<InfoFlight>, bool) {
        let mut flights = self.chunk_infos.0.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|(_, flight)| flight.upgrade().is_some());
        let joined = flights.iter().find(|(known, _)| known == blob);
        if let Some(flight) = joined.and_then(|(_, flight)| flight.upgrade()) {
            // One that is over is there only while others take its outcome.
            if flight.peek().is_none() {
                return (flight, true);
            }
        }
        let tail = Tail::new(Arc::clone(self), until);
        let wanted = blob.clone();
        let read = async move {
            let of = name(&wanted);
            match tokio::task::spawn_blocking(move || tail.chunk_info(&wanted)).await {
                Ok(result) => result.map(Arc::new).map_err(Arc::new),
                Err(panic) => Err(Arc::new(BlobError::Io { blob: of, source: io::Error::other(panic) })),
            }
        };
        let flight: SharedFuture<InfoFlight> = read.boxed().shared();
        flights.extend(flight.downgrade().map(|flight| (blob.clone(), flight)));
        (flight, false)
    }
}

/// Reads for who parses, on a thread that may wait, until the one deadline of all that is read.
struct Tail {
    shared: Arc<WorkerState>,
    until: Instant,
    held: RefCell<Option<HeldWhole>>,
    /// Who said how large the blob is.
    sized_by: RefCell<Option<Arc<Source>>>,
    refused: RefCell<WrongSources>,
}

impl Tail {
    fn new(shared: Arc<WorkerState>, until: Instant) -> Self {
        let (held, sized_by, refused) = Default::default();
        Self { shared, until, held, sized_by, refused }
    }

    /// Reads it until it is what the blob's description says, as often as there are backends at most.
    fn chunk_info(&self, blob: &Blob) -> Result<ChunkInfo, BlobError> {
        let sources = blob.id.map_or(0, |id| self.shared.sources.of(BlobId(id)).len());
        for _ in 1..sources {
            let read = read_meta_parts(self, blob);
            let held = self.held.take();
            match read {
                Ok(parts) => return Ok(ChunkInfo { parts, _held: held }),
                // Nobody delivered all of it.
                Err(error @ BlobError::Io { .. }) => return Err(error),
                Err(error) => self.ask_others_first(blob, held.as_ref(), &error),
            }
        }
        let parts = read_meta_parts(self, blob)?;
        Ok(ChunkInfo { parts, _held: self.held.take() })
    }

    /// Has others asked before those that delivered what is wrong, and one that delivered all of it not again.
    fn ask_others_first(&self, blob: &Blob, held: Option<&HeldWhole>, error: &BlobError) {
        let Some(id) = blob.id.map(BlobId) else { return };
        let sized_by = self.sized_by.take();
        let mut delivered: Vec<_> =
            held.into_iter().flat_map(HeldWhole::delivered_by).chain(&sized_by).collect();
        delivered.dedup_by(|one, other| Arc::ptr_eq(one, other));
        for source in &delivered {
            tracing::warn!(source = %source.name, "asking others before it: {error}");
            self.shared.sources.demote(id, source);
        }
        if let [source] = delivered[..] {
            self.refused.borrow_mut().add(source, error.to_string());
        }
    }

    fn sources(&self, id: BlobId) -> Vec<Arc<Source>> {
        self.refused.borrow().others_of(self.shared.sources.of(id))
    }

    /// What `answer` says, unless it is too late.
    fn wait<T>(&self, answer: impl Future<Output = Result<T, String>>) -> io::Result<T> {
        match self.shared.runtime.block_on(async { timeout_at(self.until, answer).await }) {
            Ok(result) => result.map_err(|error| io::Error::other(self.refused.borrow().and(error))),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")),
        }
    }
}

impl BlobSource for Tail {
    fn size(&self, blob: &Blob) -> io::Result<u64> {
        let id = id(blob)?;
        let now = Instant::now();
        let attempt = |source: Arc<Source>| async move {
            let size = source.size(id).await.map_err(|error| error.to_string())?;
            Ok((size, source))
        };
        let fault = |source: &Arc<Source>, _| self.shared.sources.demote(id, source);
        let asked = race(self.sources(id), self.shared.config.patience, attempt, || now, fault);
        let (size, source) = self.wait(asked)?;
        self.sized_by.replace(Some(source));
        Ok(size)
    }

    fn read(&self, blob: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        let id = id(blob)?;
        let mut held = self.held.borrow_mut();
        self.wait(self.shared.bring_whole(id, self.sources(id), &range, footprint(blob), &mut held))
    }
}

/// Bytes of a blob's chunk information in memory: as it is stored, as an array, and its digests.
fn footprint(blob: &Blob) -> u64 {
    let stored = blob.meta.map_or(0, |meta| meta.compressed_size.saturating_add(meta.uncompressed_size));
    stored.saturating_add(digests_limit(blob))
}

fn id(blob: &Blob) -> io::Result<BlobId> {
    blob.id.map(BlobId).ok_or_else(|| io::Error::other("the blob's id is not known"))
}

fn name(blob: &Blob) -> String {
    blob.id.map_or_else(|| "of unknown id".to_owned(), |id| id.to_string())
}
