//! Converted layers in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use registry::reference::Repository;

use super::{Known, put_first};
use crate::layer::conversion::ConvertedLayer;
use crate::layer::key::Key;

/// What a node of a tree takes in memory, about: itself, its name, its place in a directory.
const NODE_BYTES: usize = 320;
/// What a chunk takes.
const CHUNK_BYTES: usize = 96;

/// Converted layers, the least recently used ones dropped when they take more than a given amount of memory.
#[derive(Debug)]
pub(super) struct MemoryCache {
    limit_bytes: usize,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    layers: HashMap<Key, CachedLayer>,
    /// The keys of layers by those with their diff ids.
    aliases: HashMap<Key, Key>,
    bytes: usize,
    clock: u64,
}

#[derive(Debug)]
struct CachedLayer {
    layer: Arc<ConvertedLayer>,
    bytes: usize,
    used: u64,
    repositories: Vec<Repository>,
    alias: Option<Key>,
}

impl MemoryCache {
    /// An empty cache of at most `limit_bytes`.
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, entries: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layer of this key.
    pub(super) fn get(&self, key: &Key) -> Option<Known> {
        let mut entries = self.lock();
        entries.clock += 1;
        let now = entries.clock;
        let key = entries.aliases.get(key).unwrap_or(key).clone();
        let entry = entries.layers.get_mut(&key)?;
        entry.used = now;
        Some(Known { layer: Arc::clone(&entry.layer), repositories: entry.repositories.clone() })
    }

    /// Keeps `layer`, which has the key `key`, and `alias` by its diff id. Its blob is in `repository`, if it is in one.
    pub(super) fn insert(
        &self,
        key: Key,
        alias: Option<Key>,
        layer: Arc<ConvertedLayer>,
        repository: Option<&Repository>,
    ) {
        let chunks: usize = layer.layer.blobs.iter().map(|blob| blob.chunks.len()).sum();
        let bytes = layer.layer.tree.node_count() * NODE_BYTES + chunks * CHUNK_BYTES;
        if bytes > self.limit_bytes {
            return;
        }
        let mut entries = self.lock();
        entries.clock += 1;
        let used = entries.clock;
        // A layer that was made again and became another blob is not where the old blob was pushed to.
        let old = entries.remove(&key).filter(|old| old.layer.digest == layer.digest);
        let mut repositories = old.map(|old| old.repositories).unwrap_or_default();
        if let Some(repository) = repository {
            put_first(&mut repositories, repository);
        }
        let alias = alias.filter(|alias| *alias != key);
        if let Some(alias) = &alias {
            entries.aliases.insert(alias.clone(), key.clone());
        }
        entries.bytes += bytes;
        entries.layers.insert(key, CachedLayer { layer, bytes, used, repositories, alias });
        while entries.bytes > self.limit_bytes {
            let oldest =
                entries.layers.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone());
            if oldest.and_then(|oldest| entries.remove(&oldest)).is_none() {
                break;
            }
        }
    }
}

impl Entries {
    fn remove(&mut self, key: &Key) -> Option<CachedLayer> {
        let entry = self.layers.remove(key)?;
        self.bytes -= entry.bytes;
        // Another layer may have the alias by now: the same files, compressed differently.
        if let Some(alias) = &entry.alias
            && self.aliases.get(alias) == Some(key)
        {
            self.aliases.remove(alias);
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use rafs::tree::{Layer, Tree};
    use registry::digest::sha256;

    use super::*;
    use crate::layer::cache::REPOSITORIES;
    use crate::options::Recipe;

    fn key(number: u8) -> Key {
        Key::new(Recipe::default().fingerprint(), &sha256(&[number]))
    }

    fn layer() -> Arc<ConvertedLayer> {
        let layer = Layer { tree: Tree::new(), blobs: Vec::new() };
        Arc::new(ConvertedLayer {
            layer,
            digest: sha256(b"blob"),
            size: 1,
            source: None,
            diff_id: None,
            toc: None,
        })
    }

    #[test]
    fn the_least_recently_used_layer_makes_room_and_takes_its_alias_along() {
        let cache = MemoryCache::new(2 * NODE_BYTES);
        let found = |number| cache.get(&key(number)).is_some();
        cache.insert(key(1), Some(key(11)), layer(), None);
        cache.insert(key(2), Some(key(12)), layer(), None);
        assert!(found(11));
        cache.insert(key(3), Some(key(3)), layer(), None);
        assert!(found(1) && found(11) && !found(2) && !found(12) && found(3));
        assert_eq!(cache.lock().aliases.len(), 1);
    }

    #[test]
    fn a_layer_larger_than_the_cache_is_not_kept() {
        let cache = MemoryCache::new(NODE_BYTES - 1);
        cache.insert(key(1), None, layer(), None);
        assert!(cache.get(&key(1)).is_none());
    }

    #[test]
    fn the_repositories_that_a_blob_was_put_to_last_are_remembered() {
        let cache = MemoryCache::new(NODE_BYTES);
        let repository = |number: usize| Repository::parse(&format!("host:1/r{number}")).unwrap();
        for number in (0..REPOSITORIES + 2).chain([5]) {
            cache.insert(key(1), None, layer(), Some(&repository(number)));
        }
        let known = cache.get(&key(1)).unwrap().repositories;
        assert_eq!((known.len(), &known[0], &known[1]), (REPOSITORIES, &repository(5), &repository(17)));
    }
}
