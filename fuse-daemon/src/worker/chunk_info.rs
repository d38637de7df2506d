//! Chunk information that a bootstrap lacks, out of the blobs' tails: of blobs with batches, and of all blobs where there is
//! no chunk table.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::{BoxFuture, Shared as SharedFuture, WeakShared};
use futures::{FutureExt, TryStreamExt};
use rafs::blob::Blob;
use rafs::blob::source::{BlobError, BlobSource, MetaParts, read_meta_parts};
use tokio::time::{Instant, timeout_at};

use super::race::race;
use super::sources::Source;
use super::{LocalWorker, WorkerState};
use crate::control::BlobId;

type Outcome = Result<Arc<MetaParts>, Arc<BlobError>>;
type InfoFlight = BoxFuture<'static, Outcome>;

/// What is being read, by blob as it is described: images may describe it differently.
#[derive(Default)]
pub(super) struct ChunkInfos(Mutex<Vec<(Blob, WeakShared<InfoFlight>)>>);

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
        let tail = Tail { shared: Arc::clone(self), until };
        let wanted = blob.clone();
        let read = async move {
            let of = name(&wanted);
            let read = tokio::task::spawn_blocking(move || read_meta_parts(&tail, &wanted)).await;
            match read {
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
}

impl Tail {
    fn ask<T, F: Future<Output = Result<T, String>>>(
        &self,
        blob: &Blob,
        ask: impl Fn(Arc<Source>, BlobId) -> F,
    ) -> io::Result<T> {
        let id = blob.id.map(BlobId).ok_or_else(|| io::Error::other("the blob's id is not known"))?;
        let sources = self.shared.sources.of(id);
        let now = Instant::now();
        let attempt = |source: Arc<Source>| ask(source, id);
        let fault = |source: &Arc<Source>, _| self.shared.sources.demote(id, source);
        let race = race(sources, self.shared.config.patience, attempt, || now, fault);
        match self.shared.runtime.block_on(async { timeout_at(self.until, race).await }) {
            Ok(result) => result.map_err(io::Error::other),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")),
        }
    }
}

impl BlobSource for Tail {
    fn size(&self, blob: &Blob) -> io::Result<u64> {
        let size =
            |source: Arc<Source>, id| async move { source.size(id).await.map_err(|error| error.to_string()) };
        self.ask(blob, size)
    }

    fn read(&self, blob: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        let read = |source: Arc<Source>, id| {
            let collect = |mut bytes: Vec<u8>, part: bytes::Bytes| async move {
                bytes.extend_from_slice(&part);
                Ok(bytes)
            };
            let parts = source.read(id, range.clone()).try_fold(Vec::new(), collect);
            parts.map(|bytes| bytes.map_err(|error| error.to_string()))
        };
        self.ask(blob, read)
    }
}

fn name(blob: &Blob) -> String {
    blob.id.map_or_else(|| "of unknown id".to_owned(), |id| id.to_string())
}
