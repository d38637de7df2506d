//! Who has which blob. A backend is one however many images and blobs are read from it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::backend::{Backend, BackendError};
use super::budget::Receiving;
use super::tally::{AnswerStream, Tally};
use super::totals::HostCounters;
use crate::control::BlobId;
use crate::front::BackendName;

/// A backend, and what it has under way.
pub(super) struct Source {
    pub(super) name: BackendName,
    backend: Arc<dyn Backend>,
    /// How it answers.
    pub(super) tally: Arc<Tally>,
    /// KiB of stored bytes that may be asked of it beyond those under way: one that does not answer holds up nobody else.
    pub(super) share: Semaphore,
    /// What is arriving. Changed under the budget's lock.
    pub(super) receiving: Mutex<Receiving>,
}

impl Source {
    /// See [`Backend::read`].
    pub(super) fn read(&self, blob: BlobId, range: Range<u64>) -> AnswerStream {
        let bytes = range.end.saturating_sub(range.start);
        self.tally.follow(self.backend.read(blob, range), bytes)
    }

    /// See [`Backend::size`].
    pub(super) async fn size(&self, blob: BlobId) -> Result<u64, BackendError> {
        let mut request = self.tally.begin();
        request.waits();
        let size = self.backend.size(blob).await;
        match &size {
            Ok(_) => request.over(Ok(())),
            Err(error) => request.over(Err((error.cause(), &crate::describe(error)))),
        }
        size
    }
}

/// See the module.
pub(super) struct Sources {
    share_kib: usize,
    patience: Duration,
    inner: Mutex<SourceTable>,
}

#[derive(Default)]
struct SourceTable {
    by_name: HashMap<BackendName, Weak<Source>>,
    /// In the order in which they are asked, with the number of registrations.
    of_blob: HashMap<BlobId, Vec<(Arc<Source>, usize)>>,
}

/// Where a backend is put among those of a blob.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// It is asked first: the image that names it has just been pulled from there.
    First,
    /// It is asked after the others.
    Last,
}

impl Sources {
    /// Each backend may have `share_bytes` under way, and does not answer if nothing comes for `patience`.
    pub(super) fn new(share_bytes: usize, patience: Duration) -> Self {
        Self { share_kib: share_bytes.div_ceil(1024).max(1), patience, inner: Mutex::default() }
    }

    /// Has a blob read from a backend as well, whose requests count as those to `host`.
    pub(super) fn add(
        &self,
        blob: BlobId,
        backend: &Arc<dyn Backend>,
        place: Place,
        host: &Arc<HostCounters>,
    ) -> Arc<Source> {
        let mut inner = self.lock();
        let source = self.source(&mut inner, backend, host);
        let of_blob = inner.of_blob.entry(blob).or_default();
        let known = of_blob.iter().position(|(known, _)| Arc::ptr_eq(known, &source));
        let mut entry = known.map_or_else(|| (Arc::clone(&source), 0), |position| of_blob.remove(position));
        entry.1 += 1;
        let position = match (place, known) {
            (Place::First, _) => 0,
            (Place::Last, Some(position)) => position,
            (Place::Last, None) => of_blob.len(),
        };
        of_blob.insert(position, entry);
        source
    }

    fn source(
        &self,
        inner: &mut SourceTable,
        backend: &Arc<dyn Backend>,
        host: &Arc<HostCounters>,
    ) -> Arc<Source> {
        let name = BackendName::from(backend.name());
        if let Some(known) = inner.by_name.get(&name).and_then(Weak::upgrade) {
            return known;
        }
        let source = Arc::new(Source {
            name: Arc::clone(&name),
            backend: Arc::clone(backend),
            tally: Tally::new(self.patience, Arc::clone(host)),
            share: Semaphore::new(self.share_kib),
            receiving: Mutex::default(),
        });
        inner.by_name.retain(|_, source| source.strong_count() > 0);
        inner.by_name.insert(name, Arc::downgrade(&source));
        source
    }

    pub(super) fn remove(&self, blob: BlobId, source: &Arc<Source>) {
        let mut inner = self.lock();
        let Some(of_blob) = inner.of_blob.get_mut(&blob) else { return };
        for (_, users) in of_blob.iter_mut().filter(|(known, _)| Arc::ptr_eq(known, source)) {
            *users -= 1;
        }
        of_blob.retain(|(_, users)| *users > 0);
        if of_blob.is_empty() {
            inner.of_blob.remove(&blob);
        }
    }

    /// Who has the blob, in the order to ask.
    pub(super) fn of(&self, blob: BlobId) -> Vec<Arc<Source>> {
        let inner = self.lock();
        let of_blob = inner.of_blob.get(&blob).map_or(&[][..], Vec::as_slice);
        of_blob.iter().map(|(source, _)| Arc::clone(source)).collect()
    }

    /// Asks others before this source from now on, since it failed for the blob.
    pub(super) fn demote(&self, blob: BlobId, source: &Arc<Source>) {
        let mut inner = self.lock();
        let of_blob = inner.of_blob.get_mut(&blob);
        if let Some(of_blob) = of_blob
            && let Some(position) = of_blob.iter().position(|(known, _)| Arc::ptr_eq(known, source))
        {
            of_blob[position..].rotate_left(1);
        }
    }

    /// Asks others before this source from now on, for whatever blob, since it does not answer.
    pub(super) fn demote_everywhere(&self, source: &Arc<Source>) {
        let blobs: Vec<BlobId> = self.lock().of_blob.keys().copied().collect();
        blobs.into_iter().for_each(|blob| self.demote(blob, source));
    }

    /// The permits that so many stored bytes need: all of the share for what is larger than it.
    pub(super) fn permits(&self, bytes: u64) -> u32 {
        let wanted = usize::try_from(bytes.div_ceil(1024)).unwrap_or(usize::MAX).clamp(1, self.share_kib);
        u32::try_from(wanted).unwrap_or(u32::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, SourceTable> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
