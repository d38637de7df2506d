//! What was converted before: a rebuild moves only new layers.
//!
//! Kept are the trees, not the blobs; those are where they were pushed to. A layer is found by its digest or by its diff id,
//! and only for the options that it was made with.
//!
//! - `memory`: for this process's life.
//! - `disk`: for longer, and for several processes.
//! - `entry`: a layer as a file.

mod disk;
mod entry;
mod memory;

use std::path::Path;
use std::sync::Arc;

use registry::reference::Repository;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use self::disk::DiskCache;
pub(super) use self::entry::complete;
use self::memory::MemoryCache;
use super::conversion::ConvertedLayer;
use super::key::Key;
use crate::options::Recipe;

/// So many repositories are remembered of a blob: those that it was put to last.
const REPOSITORIES: usize = 16;

/// A layer that was converted before.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) layer: Arc<ConvertedLayer>,
    /// Where its blob is known to have been put, the latest place first.
    pub(super) repositories: Vec<Repository>,
}

/// Converted layers, in memory and perhaps on disk.
#[derive(Debug)]
pub struct LayerCache {
    memory: MemoryCache,
    disk: Option<Arc<DiskCache>>,
    /// One file is made at a time: each is in memory before it is written.
    writer: Arc<Semaphore>,
    writes: TaskTracker,
}

impl LayerCache {
    /// An empty cache of at most `bytes` of memory.
    pub fn new(bytes: usize) -> Self {
        let writes = TaskTracker::new();
        writes.close();
        Self { memory: MemoryCache::new(bytes), disk: None, writer: Arc::new(Semaphore::new(1)), writes }
    }

    /// The same, with at most `bytes` of files in the directory `dir`, which several processes may share.
    pub fn on_disk(self, dir: &Path, bytes: u64) -> Self {
        Self { disk: Some(Arc::new(DiskCache::new(dir, bytes))), ..self }
    }

    /// The layer of this key, which is that of a layer made by `recipe`.
    pub(super) async fn find(&self, key: &Key, recipe: &Arc<Recipe>) -> Option<Known> {
        if let Some(known) = self.memory.get(key) {
            return Some(known);
        }
        let (disk, wanted, recipe) = (Arc::clone(self.disk.as_ref()?), key.clone(), Arc::clone(recipe));
        let read = tokio::task::spawn_blocking(move || disk.read(&wanted, &recipe));
        let known = read.await.ok().flatten()?;
        for repository in known.repositories.iter().rev() {
            self.keep_in_memory(&known.layer, Some(repository), key);
        }
        Some(known)
    }

    /// Whether the layer of this key is in memory.
    pub(super) fn is_in_memory(&self, key: &Key) -> bool {
        self.memory.get(key).is_some()
    }

    /// Keeps a layer that was made just now, and whose blob is in `repository` if it is in one.
    pub(super) fn insert(&self, key: &Key, layer: &Arc<ConvertedLayer>, repository: Option<&Repository>) {
        self.keep_in_memory(layer, repository, key);
        let (layer, repository) = (Arc::clone(layer), repository.cloned());
        self.in_background(key.clone(), move |disk, key| disk.write(&key, &layer, repository.as_ref()));
    }

    /// Notes that a known layer was used, and that its blob is in `repository` now if it is in one.
    pub(super) fn used(&self, key: &Key, layer: &Arc<ConvertedLayer>, repository: Option<&Repository>) {
        let key = key.of_layer(layer);
        self.keep_in_memory(layer, repository, &key);
        let repository = repository.cloned();
        self.in_background(key, move |disk, key| disk.used(&key, repository.as_ref()));
    }

    fn keep_in_memory(&self, layer: &Arc<ConvertedLayer>, repository: Option<&Repository>, key: &Key) {
        let alias = layer.diff_id.as_ref().map(|diff_id| key.with(diff_id));
        self.memory.insert(key.of_layer(layer), alias, Arc::clone(layer), repository);
    }

    /// Works on the files, without anybody waiting for it.
    fn in_background(&self, key: Key, work: impl FnOnce(&DiskCache, Key) + Send + 'static) {
        let Some(disk) = &self.disk else { return };
        let (disk, writer) = (Arc::clone(disk), Arc::clone(&self.writer));
        self.writes.spawn(async move {
            let Ok(_turn) = writer.acquire_owned().await else { return };
            let worked = tokio::task::spawn_blocking(move || work(&disk, key)).await;
            if let Err(error) = worked {
                tracing::warn!(%error, "the layer cache's writer ended unexpectedly");
            }
        });
    }

    /// Waits until what was kept so far is on disk.
    pub(super) async fn settled(&self) {
        self.writes.wait().await;
    }
}

/// Notes that a blob was put to `repository` last.
fn put_first(repositories: &mut Vec<Repository>, repository: &Repository) {
    repositories.retain(|other| other != repository);
    repositories.insert(0, repository.clone());
    repositories.truncate(REPOSITORIES);
}

#[cfg(test)]
mod tests;
