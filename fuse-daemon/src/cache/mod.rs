//! What the node holds of each blob: one sparse file with the *uncompressed* chunks at their uncompressed offsets, so
//! that it can also be the blob's EROFS device, beside a map of which chunks are there.
//!
//! Blobs are shared by all images that refer to them. A directory has one owner at a time, by a lock file.

mod blob;
mod boot;
mod chunk_map;
mod places;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::fcntl::{Flock, FlockArg};
use rafs::blob::ChunkIndex;

pub use blob::{CachedBlob, Lease};
pub use boot::BootId;
pub use chunk_map::{CHUNK_LIMIT, ChunkMap, ChunkState};
pub use places::Place;

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
    /// An image says something else of a blob than images that are mounted.
    #[error(
        "its chunk {} of blob {blob} is not the one that a mounted image has there: one of them was not made from this blob",
        chunk.0
    )]
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
    open: HashMap<BlobId, Weak<CachedBlob>>,
    /// Blobs that nobody wants to keep, to be deleted when their last lease ends.
    unwanted: HashSet<BlobId>,
}

impl Blobs {
    fn is_leased(&self, id: BlobId) -> bool {
        self.open.get(&id).and_then(Weak::upgrade).is_some_and(|blob| blob.is_leased())
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
        Ok(Self { inner: Arc::new(Inner { dir, boot, blobs: Mutex::default(), _lock: lock }) })
    }

    /// The cached blob, made if it is not there. `uncompressed_size` is the least size in bytes that its file gets;
    /// `places` is what the image that asks says of the blob's chunks. Where images that are gone said otherwise, the
    /// cache begins anew.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: an image that is mounted says otherwise, or the files cannot be made, read or written.
    pub fn blob(&self, id: BlobId, uncompressed_size: u64, places: &[Place]) -> Result<Lease, CacheError> {
        let mut blobs = self.inner.lock();
        let live = blobs.open.get(&id).and_then(Weak::upgrade);
        let blob = match live {
            Some(live) => live,
            None => self.open_blob(&mut blobs, id, uncompressed_size)?,
        };
        let blob = match blob.admit(places)? {
            None => blob,
            Some(chunk) if blob.is_leased() => return Err(CacheError::Contradiction { blob: id, chunk }),
            Some(chunk) => {
                tracing::warn!(blob = %id, chunk = chunk.0, "images disagree on a blob: dropping what was cached of it");
                blob::delete(&self.inner.dir, id)?;
                let anew = self.open_blob(&mut blobs, id, uncompressed_size)?;
                match anew.admit(places)? {
                    None => anew,
                    Some(chunk) => return Err(CacheError::Contradiction { blob: id, chunk }),
                }
            }
        };
        blob.reserve(uncompressed_size)?;
        blobs.unwanted.remove(&id);
        Ok(Lease::new(Arc::clone(&self.inner), blob))
    }

    fn open_blob(
        &self,
        blobs: &mut Blobs,
        id: BlobId,
        uncompressed_size: u64,
    ) -> Result<Arc<CachedBlob>, CacheError> {
        let blob = Arc::new(CachedBlob::open(&self.inner.dir, id, uncompressed_size, self.inner.boot)?);
        blobs.open.insert(id, Arc::downgrade(&blob));
        Ok(blob)
    }

    /// Bytes on disk that the blob takes; 0 if the cache does not have it.
    pub fn usage(&self, id: BlobId) -> u64 {
        self.inner.usage(id)
    }

    /// The blobs that there are files of.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: the directory cannot be read.
    pub fn held(&self) -> Result<BTreeSet<BlobId>, CacheError> {
        let dir = &self.inner.dir;
        let mut held = BTreeSet::new();
        for entry in std::fs::read_dir(dir).map_err(CacheError::io("list", dir))? {
            let name = entry.map_err(CacheError::io("list", dir))?.file_name();
            let id = name.to_str().and_then(|name| name.split('.').next()?.parse::<BlobId>().ok());
            held.extend(id);
        }
        Ok(held)
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
            outcome.freed_bytes += self.inner.usage(id);
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

    fn usage(&self, id: BlobId) -> u64 {
        blob::paths(&self.dir, id).iter().map(|path| blob::bytes_on_disk(path)).sum()
    }

    /// Deletes a blob that nobody has a lease of; whether there were files of it.
    fn delete(&self, blobs: &mut Blobs, id: BlobId) -> Result<bool, CacheError> {
        // What still works on it ends with the deleted files; who opens it next gets new ones.
        blobs.open.remove(&id);
        blobs.unwanted.remove(&id);
        blob::delete(&self.dir, id)
    }

    /// A lease of the blob has ended.
    fn released(&self, id: BlobId) {
        let mut blobs = self.lock();
        if !blobs.unwanted.contains(&id) || blobs.is_leased(id) {
            return;
        }
        match self.delete(&mut blobs, id) {
            Ok(_) => tracing::info!(blob = %id, "freed a blob that nobody keeps, with its last mount"),
            Err(error) => tracing::warn!(blob = %id, %error, "cannot free a blob that nobody keeps"),
        }
    }
}
