//! Asking a mount's own sources whether they have a blob.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::runtime::Handle;

use crate::cache::Cache;
use crate::control::BlobId;
use crate::fs::{Asker, Later, Refusal, Told};
use crate::worker::Fetcher;

/// A mount's own sources by their names, for as long as it needs them.
pub(super) type MountSources<W> = Mutex<Vec<(String, Arc<<W as Fetcher>::Registration>)>>;

/// A worker's answer that there is none in time may come so much before that: it counts whole milliseconds.
const EARLY: Duration = Duration::from_millis(20);

/// The sources of one mount.
pub(super) struct OwnSources<W: Fetcher> {
    /// Names the image in logs.
    pub(super) image: String,
    pub(super) worker: Arc<W>,
    pub(super) cache: Cache,
    pub(super) runtime: Handle,
    /// How long what all of them said no to is not asked for again.
    pub(super) failure_memory: Duration,
    pub(super) sources: Weak<MountSources<W>>,
    pub(super) refused: Refused,
}

/// What nobody had lately, and how many were asked.
pub(super) type Refused = Arc<Mutex<HashMap<BlobId, (Instant, usize, Arc<str>)>>>;

impl<W: Fetcher> OwnSources<W> {
    fn all(&self) -> Vec<(String, Arc<W::Registration>)> {
        self.sources.upgrade().map_or_else(Vec::new, |sources| lock(&sources).clone())
    }

    /// Whether one of them has said before that it has the blob.
    pub(super) fn have_answered(&self, blob: BlobId) -> bool {
        let names: Vec<String> = self.all().into_iter().map(|(name, _)| name).collect();
        self.cache.was_answered(blob, &names).unwrap_or_else(|error| {
            tracing::warn!(%blob, error = crate::describe(&error), "asking the sources again whether they have a blob");
            false
        })
    }

    /// The name of one that has it. If one has not answered until then, what the others say is not remembered.
    async fn who_has(&self, blob: BlobId, until: Instant) -> Result<String, Refusal> {
        let sources = self.all();
        let number = sources.len();
        if let Some((at, asked, reason)) = lock(&self.refused).get(&blob)
            && *asked == number
            && at.elapsed() < self.failure_memory
        {
            return Err(Refusal { reason: Arc::clone(reason), is_late: false });
        }
        let until = tokio::time::Instant::from_std(until);
        let asked = sources.into_iter().map(|(name, source)| async move {
            match tokio::time::timeout_at(until, self.worker.has(blob, &source, until)).await {
                Ok(Ok(())) => Ok(name),
                Ok(Err(reason)) => Err(format!("{name}: {reason}")),
                Err(_) => Err(format!("{name}: no answer in time")),
            }
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut reasons = Vec::new();
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(name) => return Ok(name),
                Err(reason) => reasons.push(reason),
            }
        }
        let reason: Arc<str> = reasons.join("; ").into();
        let is_late = tokio::time::Instant::now() + EARLY >= until;
        if is_late {
            tokio::time::sleep_until(until).await;
        } else {
            lock(&self.refused).insert(blob, (Instant::now(), number, Arc::clone(&reason)));
        }
        Err(Refusal { reason, is_late })
    }
}

impl<W: Fetcher> Asker for Arc<OwnSources<W>> {
    fn ask(&self, blob: BlobId, until: Instant, told: Told) {
        let own = Arc::clone(self);
        self.runtime.spawn(async move {
            let found = own.who_has(blob, until).await;
            let answering = tokio::task::spawn_blocking(move || match found {
                Ok(source) => {
                    // Before somebody reads, so that whoever has read does so after a crash; but nobody waits for the disk.
                    let remembered = own.cache.remember_answer(blob, &source);
                    told(Ok(()));
                    if let Err(error) = remembered.and_then(|remembered| remembered.sync()) {
                        tracing::warn!(%blob, error = crate::describe(&error), "cannot remember which sources have a blob");
                    }
                }
                Err(refusal) => {
                    let (image, reason) = (&own.image, &refusal.reason);
                    tracing::warn!(image, %blob, %reason, "none of the image's own sources says that it has a blob");
                    told(Err(refusal));
                }
            });
            if let Err(panic) = answering.await {
                tracing::error!(%blob, %panic, "answering readers ended in a bug");
            }
        });
    }

    fn at(&self, time: Instant, then: Later) {
        let runtime = self.runtime.clone();
        self.runtime.spawn(async move {
            tokio::time::sleep_until(time.into()).await;
            runtime.spawn_blocking(then);
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
