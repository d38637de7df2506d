//! The blob of a layer that was converted before, at another destination: mounted or copied from where it is. And the layer
//! itself, where that is to be there as well.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use registry::client::{Client, Error};
use registry::digest::Digest;
use registry::reference::Repository;
use tokio::time::{Instant, timeout};

use super::cache::Known;
use crate::destination::{Destination, StoreError};
use crate::progress::{Progress, Task, short};

/// From so many repositories a blob is fetched from other registries before it is made again, or a layer mounted before it is
/// sent.
const COPIES: usize = 3;

/// Within so long another registry has to say whether it has a blob, and to go on sending it: it is not the one that anybody asked
/// for.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// So long one image waits for other registries that do not answer, all of its layers together; then they are converted.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an image has found out about the registries that may have its blobs.
#[derive(Debug, Default)]
pub(super) struct Elsewhere(Mutex<Found>);

#[derive(Debug, Default)]
struct Found {
    /// Registries that did not answer, or answered what is no answer.
    dead: HashSet<String>,
    /// Repositories that may not be read.
    closed: HashSet<Repository>,
    /// The time that was spent on them.
    waited: Duration,
}

impl Elsewhere {
    fn lock(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether blobs may be asked for at `from`.
    fn is_open(&self, from: &Repository) -> bool {
        let found = self.lock();
        found.waited < PATIENCE && !found.dead.contains(from.host()) && !found.closed.contains(from)
    }

    /// `from` has given no blob, since `since`.
    fn failed(&self, from: &Repository, since: Instant, failure: &Failure) {
        tracing::debug!(%failure, %from, "blob not copied");
        let mut found = self.lock();
        found.waited += since.elapsed();
        match failure {
            Failure::Registry(error) if error.is_not_found() => {}
            Failure::Registry(error) if error.is_denied() => drop(found.closed.insert(from.clone())),
            _ => drop(found.dead.insert(from.host().to_owned())),
        }
    }
}

/// Where it is shown what is copied.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) progress: Arc<Progress>,
    pub(super) output: usize,
}

impl Shown {
    /// Begins to show how a blob of `size` bytes is copied.
    fn begin(&self, blob: &Digest, size: u64) -> Task {
        self.progress.task(self.output, format!("copying {}", short(blob)), size)
    }
}

/// Why a blob cannot be copied from somewhere.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Registry(#[from] Error),
    #[error("no answer within {} s", ANSWER_WITHIN.as_secs())]
    Silent(#[from] tokio::time::error::Elapsed),
}

/// Has the blob of `known` at `destination`, without making it again. `false` where nobody has it.
pub(super) async fn provide(
    known: &Known,
    destination: &dyn Destination,
    elsewhere: &Elsewhere,
    shown: Option<&Shown>,
) -> Result<bool, StoreError> {
    let digest = &known.layer.digest;
    if destination.has_blob(digest).await? {
        return Ok(true);
    }
    let Some((client, repository)) = destination.repository() else { return Ok(false) };
    let others = || known.repositories.iter().filter(|from| *from != repository);
    for from in others().filter(|from| from.host() == repository.host()) {
        if client.mount_blob(repository, from, digest).await? {
            return Ok(true);
        }
    }
    for from in others().take(COPIES) {
        if elsewhere.is_open(from) && copy((client, from), digest, destination, elsewhere, shown).await? {
            tracing::info!(blob = %digest, %from, to = %repository, "blob copied");
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the registry that `destination` is in made the layer `source`, as it is, part of it: from a repository that has the
/// blob which it became.
pub(super) async fn mount_source(
    known: &Known,
    source: &Digest,
    destination: &dyn Destination,
) -> Result<bool, StoreError> {
    let Some((client, repository)) = destination.repository() else { return Ok(false) };
    let siblings =
        known.repositories.iter().filter(|from| *from != repository && from.host() == repository.host());
    for from in siblings.take(COPIES) {
        if client.mount_blob(repository, from, source).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Copies a blob from the repository `from`; `false` if it cannot be read there.
async fn copy(
    (client, from): (&Client, &Repository),
    digest: &Digest,
    destination: &dyn Destination,
    elsewhere: &Elsewhere,
    shown: Option<&Shown>,
) -> Result<bool, StoreError> {
    let since = Instant::now();
    let size = match answer(client.blob_size(from, digest)).await {
        Ok(Some(size)) => size,
        Ok(None) => return Ok(false),
        Err(failure) => {
            elsewhere.failed(from, since, &failure);
            return Ok(false);
        }
    };
    let task = shown.map(|shown| shown.begin(digest, size));
    // A source that fails is no failure of the build: the layer is converted instead. A destination that fails is one.
    let mut reader = client.blob(from, digest)?;
    let mut writer = destination.begin().await?;
    loop {
        let since = Instant::now();
        match answer(reader.next()).await {
            Ok(Some(piece)) => {
                let bytes = piece.len() as u64;
                writer.write(piece).await?;
                task.iter().for_each(|task| task.advance(bytes));
            }
            Ok(None) => {
                writer.finish(digest).await?;
                task.into_iter().for_each(Task::finish);
                return Ok(true);
            }
            Err(failure) => {
                elsewhere.failed(from, since, &failure);
                writer.cancel().await;
                return Ok(false);
            }
        }
    }
}

/// Waits for what a registry says, and no longer than it may take.
async fn answer<T>(said: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
    Ok(timeout(ANSWER_WITHIN, said).await??)
}
