//! What was converted before in this process's life: a rebuild moves only new layers.
//!
//! Kept are the trees, not the blobs; those are where they were pushed to. The key is the source's digest and the
//! fingerprint of the options.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use registry::digest::Digest;
use registry::reference::Repository;

use super::conversion::ConvertedLayer;
use crate::destination::{Destination, StoreError};
use crate::options::Fingerprint;

/// What a node of a tree takes in memory, about: itself, its name, its place in a directory.
const NODE_BYTES: usize = 320;
/// What a chunk takes.
const CHUNK_BYTES: usize = 96;

/// Converted layers, the least recently used ones dropped when they take more than a given amount of memory.
#[derive(Debug)]
pub struct LayerCache {
    limit_bytes: usize,
    entries: Mutex<Entries>,
}

/// What a converted layer is kept under.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct LayerKey {
    /// Digest of the layer that it was made of.
    pub source: Digest,
    /// Of the options that it was made with.
    pub fingerprint: Fingerprint,
}

#[derive(Debug, Default)]
struct Entries {
    layers: HashMap<LayerKey, Entry>,
    bytes: usize,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    layer: Arc<ConvertedLayer>,
    bytes: usize,
    used: u64,
    /// Where its blob is known to have been put.
    repositories: HashSet<Repository>,
}

impl LayerCache {
    /// An empty cache of at most `limit_bytes`.
    pub fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, entries: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layer kept under `key`, if its blob is at `destination`.
    pub(super) async fn find(
        &self,
        key: &LayerKey,
        destination: &dyn Destination,
    ) -> Result<Option<Arc<ConvertedLayer>>, StoreError> {
        let Some((layer, repositories)) = self.get(key) else { return Ok(None) };
        if destination.has_blob(&layer.digest).await? {
            return Ok(Some(layer));
        }
        let Some((client, repository)) = destination.repository() else { return Ok(None) };
        for from in repositories.iter().filter(|from| from.host() == repository.host() && *from != repository)
        {
            match client.mount_blob(repository, from, &layer.digest).await {
                Ok(true) => return Ok(Some(layer)),
                Ok(false) => {}
                // Who may push here need not be allowed to read there.
                Err(error) if error.is_denied() || error.is_not_found() => {
                    tracing::debug!(%error, %from, "blob not mounted");
                }
                Err(error) => return Err(error.into()),
            }
        }
        // Deleted from the registry since: it has to be made again.
        Ok(None)
    }

    fn get(&self, key: &LayerKey) -> Option<(Arc<ConvertedLayer>, Vec<Repository>)> {
        let mut entries = self.lock();
        entries.clock += 1;
        let now = entries.clock;
        let entry = entries.layers.get_mut(key)?;
        entry.used = now;
        Some((Arc::clone(&entry.layer), entry.repositories.iter().cloned().collect()))
    }

    /// Keeps `layer` under `key`; its blob was put to `destination`.
    pub(super) fn insert(&self, key: LayerKey, layer: Arc<ConvertedLayer>, destination: &dyn Destination) {
        let chunks: usize = layer.layer.blobs.iter().map(|blob| blob.chunks.len()).sum();
        let bytes = layer.layer.tree.node_count() * NODE_BYTES + chunks * CHUNK_BYTES;
        if bytes > self.limit_bytes {
            return;
        }
        let mut entries = self.lock();
        entries.clock += 1;
        let used = entries.clock;
        let old = entries.layers.remove(&key);
        let mut repositories = HashSet::new();
        if let Some(old) = old {
            entries.bytes -= old.bytes;
            if old.layer.digest == layer.digest {
                repositories = old.repositories;
            }
        }
        if let Some((_, repository)) = destination.repository() {
            repositories.insert(repository.clone());
        }
        entries.bytes += bytes;
        entries.layers.insert(key, Entry { layer, bytes, used, repositories });
        while entries.bytes > self.limit_bytes {
            let oldest =
                entries.layers.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone());
            let Some(entry) = oldest.and_then(|oldest| entries.layers.remove(&oldest)) else { break };
            entries.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use rafs::tree::{Layer, Tree};

    use super::*;
    use crate::destination::Nowhere;
    use crate::options::{Options, Recipe, Used};

    fn digest(number: u8) -> Digest {
        registry::digest::sha256(&[number])
    }

    fn key(number: u8) -> LayerKey {
        LayerKey { source: digest(number), fingerprint: Recipe::default().fingerprint().clone() }
    }

    fn layer() -> Arc<ConvertedLayer> {
        let layer = Layer { tree: Tree::new(), blobs: Vec::new() };
        Arc::new(ConvertedLayer { layer, digest: digest(0), size: 1 })
    }

    #[tokio::test]
    async fn the_least_recently_used_layer_makes_room() {
        let cache = LayerCache::new(2 * NODE_BYTES);
        let found = async |number| cache.find(&key(number), &Nowhere).await.unwrap().is_some();
        cache.insert(key(1), layer(), &Nowhere);
        cache.insert(key(2), layer(), &Nowhere);
        assert!(found(1).await);
        cache.insert(key(3), layer(), &Nowhere);
        assert!(found(1).await && !found(2).await && found(3).await);
    }

    #[tokio::test]
    async fn a_layer_is_found_by_the_options_that_it_was_made_with() {
        let cache = LayerCache::new(10 * NODE_BYTES);
        cache.insert(key(1), layer(), &Nowhere);
        let mut options = Options::default();
        options.set(Used::Build, "chunk-size", "64K").unwrap();
        let other = Recipe::new(options, None, Vec::new(), 0).unwrap().fingerprint().clone();
        let other = LayerKey { fingerprint: other, ..key(1) };
        assert!(cache.find(&other, &Nowhere).await.unwrap().is_none());
        assert!(cache.find(&key(1), &Nowhere).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_layer_larger_than_the_cache_is_not_kept() {
        let cache = LayerCache::new(NODE_BYTES - 1);
        cache.insert(key(1), layer(), &Nowhere);
        assert!(cache.find(&key(1), &Nowhere).await.unwrap().is_none());
    }
}
