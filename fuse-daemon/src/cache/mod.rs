//! What the node holds of each blob: one sparse file with the *uncompressed* chunks at their uncompressed offsets, so
//! that it can also be the blob's EROFS device, beside a map of which chunks are there.
//!
//! Blobs are shared by all images that refer to them, and with a blob is kept what its chunks are: see [`Described`].
//! Images that are mounted at once and contradict each other get caches of their own. A directory has one owner at a time,
//! by a lock file.

mod blob;
mod boot;
mod chunk_map;
mod description;
mod lease;
mod places;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::fcntl::{Flock, FlockArg};
use rafs::blob::{Blob, ChunkIndex};

use blob::Variant;
pub use blob::{CachedBlob, Generation, StoreError};
pub use boot::BootId;
pub use chunk_map::{CHUNK_LIMIT, ChunkMap, ChunkState};
pub use description::{CHUNK_BYTES_LIMIT, Described, Said};
pub use lease::Lease;

use crate::control::{BlobId, Kept, Removed};

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Another process has the directory.
    #[error("cache {} is in use by another process", dir.display())]
    Locked {
        /// The cache's directory.
        dir: PathBuf,
    },
    /// An image contradicts itself.
    #[error("its chunk {} of blob {blob} overlaps another that is not the same", chunk.0)]
    Contradiction {
        /// The blob.
        blob: BlobId,
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl CacheError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// A directory of cached blobs.
#[derive(Debug)]
pub struct Cache {
    inner: Arc<Inner>,
}

/// What leases share with their cache.
#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    boot: BootId,
    blobs: Mutex<Blobs>,
    /// Held as long as the cache is.
    _lock: Flock<File>,
}

#[derive(Debug, Default)]
struct Blobs {
    /// Mounts hold a lease; an entry that nobody holds is merely a name.
    open: BTreeMap<(BlobId, Variant), Weak<CachedBlob>>,
    /// Blobs that nobody wants to keep, to be deleted when their last lease ends.
    unwanted: HashSet<BlobId>,
    opened: u64,
}

impl Blobs {
    fn variants(&self, id: BlobId) -> impl Iterator<Item = (Variant, Arc<CachedBlob>)> {
        let all = self.open.range((id, Variant(0))..=(id, Variant(u32::MAX)));
        all.filter_map(|((_, variant), blob)| Some((*variant, blob.upgrade()?)))
    }

    fn is_leased(&self, id: BlobId) -> bool {
        self.variants(id).any(|(_, blob)| blob.is_leased())
    }
}

impl Cache {
    /// Opens the cache in `dir`, which is made if missing. Chunks that were cached in another boot than `boot` are
    /// checked before their first use: what a crash left of them is unknown.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: the directory is in use, or cannot be made or written.
    pub fn open(dir: impl Into<PathBuf>, boot: BootId) -> Result<Self, CacheError> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir).map_err(CacheError::io("make directory", &dir))?;
        let path = dir.join("lock");
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(CacheError::io("open", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::errno::Errno::EAGAIN => CacheError::Locked { dir: dir.clone() },
            other => CacheError::io("lock", &path)(other.into()),
        })?;
        let inner = Inner { dir, boot, blobs: Mutex::default(), _lock: lock };
        // What only images needed that contradicted others: with the daemon that had them mounted, it is of no use.
        for (id, variant) in inner.files()?.into_iter().filter(|(_, variant)| *variant != Variant(0)) {
            blob::delete(&inner.dir, id, variant)?;
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The cached blob, made if it is not there. `coding` and `said` is what the image that asks says of the blob and, in
    /// order of index, of its chunks; it counts as long as the lease. `size` is the least size in bytes that the file gets.
    ///
    /// An image that contradicts others that are mounted gets a cache of its own, which ends with its lease: nobody can
    /// tell who is right, each is served what its own digests say, and none is refused for another's sake.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: the image contradicts itself, or the files cannot be made, read or written.
    pub fn blob(
        &self,
        id: BlobId,
        coding: &Arc<Blob>,
        size: u64,
        said: &[Said],
    ) -> Result<Lease, CacheError> {
        if let Some(chunk) = description::contradiction(said) {
            return Err(CacheError::Contradiction { blob: id, chunk });
        }
        let mut blobs = self.inner.lock();
        let mut variant = Variant(0);
        // A variant that nobody has mounted takes any image, so this ends.
        let blob = loop {
            let blob = self.open_blob(&mut blobs, id, variant)?;
            let Some(chunk) = blob.admit(coding, said, size)? else { break blob };
            let (mine, other) = (variant.0 + 1, variant.0);
            tracing::warn!(blob = %id, chunk = chunk.0, mine, other, "images contradict each other on a blob: a cache apart");
            variant = Variant(mine);
        };
        blobs.unwanted.remove(&id);
        Ok(Lease::new(Arc::clone(&self.inner), blob, variant, said))
    }

    fn open_blob(
        &self,
        blobs: &mut Blobs,
        id: BlobId,
        variant: Variant,
    ) -> Result<Arc<CachedBlob>, CacheError> {
        if let Some(open) = blobs.open.get(&(id, variant)).and_then(Weak::upgrade) {
            return Ok(open);
        }
        blobs.opened += 1;
        let generation = Generation(blobs.opened);
        let blob = Arc::new(CachedBlob::open(&self.inner.dir, id, variant, self.inner.boot, generation)?);
        blobs.open.insert((id, variant), Arc::downgrade(&blob));
        Ok(blob)
    }

    /// Bytes on disk that the blob takes; 0 if the cache does not have it.
    pub fn usage(&self, id: BlobId) -> u64 {
        self.inner.usage(&self.inner.lock(), id)
    }

    /// The blobs that there are files of.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: the directory cannot be read.
    pub fn held(&self) -> Result<BTreeSet<BlobId>, CacheError> {
        Ok(self.inner.files()?.into_iter().map(|(id, _)| id).collect())
    }

    /// Deletes the blobs that no mount has a lease of.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: a file could not be deleted; those before it are.
    pub fn remove(&self, ids: &[BlobId]) -> Result<Removed, CacheError> {
        // Held throughout, so that nobody opens a blob between the question whether it is in use and its end.
        let mut blobs = self.inner.lock();
        let mut outcome = Removed::default();
        for &id in ids {
            if blobs.is_leased(id) {
                outcome.in_use.push(id);
            } else if self.inner.delete(&mut blobs, id)? {
                outcome.removed.push(id);
            }
        }
        Ok(outcome)
    }

    /// Deletes all blobs but `wanted` and those that mounts have leases of. Of the latter, those that are not wanted go
    /// when their last lease ends, unless they are wanted or leased again before.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: the directory cannot be read, or a file not be deleted; those before it are.
    pub fn keep(&self, wanted: &[BlobId]) -> Result<Kept, CacheError> {
        let wanted: HashSet<BlobId> = wanted.iter().copied().collect();
        let mut blobs = self.inner.lock();
        blobs.open.retain(|_, blob| blob.strong_count() > 0);
        blobs.unwanted.clear();
        let mut outcome = Kept::default();
        for id in self.held()?.into_iter().filter(|id| !wanted.contains(id)) {
            if blobs.is_leased(id) {
                blobs.unwanted.insert(id);
                outcome.in_use.push(id);
                continue;
            }
            outcome.freed_bytes += self.inner.usage(&blobs, id);
            self.inner.delete(&mut blobs, id)?;
            outcome.freed.push(id);
        }
        Ok(outcome)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Blobs> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The blobs and variants that there are files of.
    fn files(&self) -> Result<BTreeSet<(BlobId, Variant)>, CacheError> {
        let dir = &self.dir;
        let mut files = BTreeSet::new();
        for entry in std::fs::read_dir(dir).map_err(CacheError::io("list", dir))? {
            let name = entry.map_err(CacheError::io("list", dir))?.file_name();
            files.extend(name.to_str().and_then(blob::owner));
        }
        Ok(files)
    }

    fn usage(&self, blobs: &Blobs, id: BlobId) -> u64 {
        let others = blobs.variants(id).map(|(variant, _)| variant).filter(|variant| *variant != Variant(0));
        others.chain([Variant(0)]).map(|variant| blob::usage(&self.dir, id, variant)).sum()
    }

    /// Deletes a blob that nobody has a lease of; whether there were files of it.
    fn delete(&self, blobs: &mut Blobs, id: BlobId) -> Result<bool, CacheError> {
        blobs.unwanted.remove(&id);
        self.delete_variant(blobs, id, Variant(0))
    }

    fn delete_variant(&self, blobs: &mut Blobs, id: BlobId, variant: Variant) -> Result<bool, CacheError> {
        // What still works on it ends with the deleted files; who opens it next gets new ones, of another generation.
        blobs.open.remove(&(id, variant));
        blob::delete(&self.dir, id, variant)
    }

    /// A lease ends; `end` ends it.
    fn released(&self, lease: &Lease, end: impl FnOnce()) {
        let mut blobs = self.lock();
        end();
        let id = lease.blob.id();
        let freed = if lease.variant != Variant(0) && !lease.blob.is_leased() {
            self.delete_variant(&mut blobs, id, lease.variant).map(|_| ())
        } else {
            Ok(())
        };
        let freed = freed.and_then(|()| {
            if blobs.unwanted.contains(&id) && !blobs.is_leased(id) {
                tracing::info!(blob = %id, "freeing a blob that nobody keeps, with its last mount");
                self.delete(&mut blobs, id)?;
            }
            Ok(())
        });
        if let Err(error) = freed {
            tracing::warn!(blob = %id, %error, "cannot free a cached blob");
        }
    }
}
