//! What the node holds of each blob: one sparse file with the *uncompressed* chunks at their uncompressed offsets, so
//! that it can also be the blob's EROFS device, beside a map of which chunks are there.
//!
//! Blobs are shared by all images that refer to them. A directory has one owner at a time, by a lock file.

mod blob;
mod boot;
mod chunk_map;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::fcntl::{Flock, FlockArg};

pub use blob::{CachedBlob, Lease};
pub use boot::BootId;
pub use chunk_map::{CHUNK_LIMIT, ChunkMap, ChunkState};

use crate::control::{BlobId, Removed};

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Another process has the directory.
    #[error("cache {} is in use by another process", dir.display())]
    Locked {
        /// The cache's directory.
        dir: PathBuf,
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
    dir: PathBuf,
    boot: BootId,
    /// The blobs in use. Mounts hold a lease; an entry that nobody holds is merely a name.
    blobs: Mutex<HashMap<BlobId, Weak<CachedBlob>>>,
    /// Held as long as the cache is.
    _lock: Flock<File>,
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
        Ok(Self { dir, boot, blobs: Mutex::default(), _lock: lock })
    }

    /// The cached blob, made if it is not there. `uncompressed_size` is the least size in bytes that its file gets.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: its files cannot be made, read or written.
    pub fn blob(&self, id: BlobId, uncompressed_size: u64) -> Result<Lease, CacheError> {
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(blob) = blobs.get(&id).and_then(Weak::upgrade) {
            blob.reserve(uncompressed_size)?;
            return Ok(Lease::new(blob));
        }
        let blob = Arc::new(CachedBlob::open(&self.dir, id, uncompressed_size, self.boot)?);
        blobs.insert(id, Arc::downgrade(&blob));
        Ok(Lease::new(blob))
    }

    /// Bytes on disk that the blob takes; 0 if the cache does not have it.
    pub fn usage(&self, id: BlobId) -> u64 {
        blob::paths(&self.dir, id).iter().map(|path| blob::bytes_on_disk(path)).sum()
    }

    /// Deletes the blobs that no mount has a lease of.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: a file could not be deleted; those before it are.
    pub fn remove(&self, ids: &[BlobId]) -> Result<Removed, CacheError> {
        // Held throughout, so that nobody opens a blob between the question whether it is in use and its end.
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        blobs.retain(|_, blob| blob.strong_count() > 0);
        let mut outcome = Removed::default();
        for &id in ids {
            if blobs.get(&id).and_then(Weak::upgrade).is_some_and(|blob| blob.is_leased()) {
                outcome.in_use.push(id);
                continue;
            }
            // What still works on it ends with the deleted files; who opens it next gets new ones.
            blobs.remove(&id);
            if blob::delete(&self.dir, id)? {
                outcome.removed.push(id);
            }
        }
        Ok(outcome)
    }
}
