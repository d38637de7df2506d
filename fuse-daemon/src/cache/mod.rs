//! What the node holds of each blob: one sparse file with the *uncompressed* chunks at their uncompressed offsets, so
//! that it can also be the blob's EROFS device, beside a map of which chunks are there.
//!
//! Blobs are shared by all images that refer to them, and with a blob is kept what its chunks are: see [`Described`]. Where a
//! bootstrap does not say that, it comes from the blob's tail, which is kept too.
//! Images that are mounted at once and contradict each other get caches of their own. A directory has one owner at a time,
//! by a lock file.

mod answers;
mod blob;
mod boot;
mod chunk_info;
mod chunk_map;
mod description;
mod disk;
mod files;
mod handed_over;
mod lease;
mod places;
mod quota;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, Weak};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};
use rafs::blob::{Blob, ChunkIndex};

pub use answers::Remembered;
use blob::Variant;
pub use blob::{CachedBlob, Generation, StoreError};
pub use boot::BootId;
pub use chunk_map::{CHUNK_LIMIT, ChunkMap, ChunkState};
pub use description::{CHUNK_BYTES_LIMIT, Described, Said};
#[cfg(test)]
pub(crate) use disk::faults;
pub use lease::Lease;

use crate::control::{BadChunks, BlobId, CacheTotals, CachedStatus, Kept, Removed, Verified};
use crate::sync::{Mutex, MutexGuard};
use handed_over::HandedOverBlobs;
use quota::Quota;

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

/// Whether an operation failed for lack of room, which may come back.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether an operation failed since the disk fails: a block of it, or what the file system keeps there of a file. What a process
/// lacks, as memory or descriptors, says nothing of the disk.
pub(crate) fn is_broken(error: &io::Error) -> bool {
    use nix::libc::{EBADMSG, EIO, ENODATA, EUCLEAN};
    matches!(error.raw_os_error(), Some(EIO | EBADMSG | ENODATA | EUCLEAN))
}

/// A directory of cached blobs.
#[derive(Clone, Debug)]
pub struct Cache {
    inner: Arc<CacheState>,
}

/// What leases share with their cache.
#[derive(Debug)]
struct CacheState {
    dir: PathBuf,
    boot: BootId,
    blobs: Mutex<Blobs>,
    quota: Arc<Quota>,
    /// Held by who writes chunk information.
    chunk_info_turn: Mutex<()>,
    /// Held as long as the cache is.
    _lock: Flock<File>,
}

#[derive(Debug, Default)]
struct Blobs {
    /// Mounts hold a lease; an entry that nobody holds is merely a name.
    open: BTreeMap<(BlobId, Variant), Weak<CachedBlob>>,
    /// Blobs that nobody wants to keep, to be deleted when their last lease ends.
    unwanted: HashSet<BlobId>,
    /// Blobs that no quota, and no pruning, takes.
    pinned: HashSet<BlobId>,
    handed_over: HandedOverBlobs,
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

    /// Whether a mount may read from a blob: one that has a lease of it, or one that is to be taken over.
    fn is_in_use(&self, id: BlobId) -> bool {
        self.is_leased(id) || self.handed_over.is_awaited(id)
    }

    /// Whether a blob may give way to others.
    fn is_evictable(&self, id: BlobId) -> bool {
        !self.pinned.contains(&id) && !self.is_in_use(id)
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
        Self::open_with_quota(dir, boot, None)
    }

    /// As [`open`](Self::open), for a cache that takes at most `quota` bytes on disk. What was used longest ago gives way,
    /// but nothing that mounts use or that is pinned: where these fill it, chunks are served without being cached.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_with_quota(
        dir: impl Into<PathBuf>,
        boot: BootId,
        quota: Option<u64>,
    ) -> Result<Self, CacheError> {
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
        let quota = Arc::new(Quota::new(quota));
        let blobs = Blobs { handed_over: HandedOverBlobs::load(&dir, &boot), ..Blobs::default() };
        let inner = CacheState {
            dir,
            boot,
            blobs: Mutex::new(blobs),
            quota,
            chunk_info_turn: Mutex::default(),
            _lock: lock,
        };
        // What only images needed that contradicted others: with the daemon that had them mounted, it is of no use.
        for (id, variant) in inner.files()?.into_iter().filter(|(_, variant)| *variant != Variant(0)) {
            files::delete(&inner.dir, id, variant)?;
        }
        inner.load_pins()?;
        inner.make_room(0);
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
        blobs.handed_over.leased(id);
        let lease = Lease::new(Arc::clone(&self.inner), blob, variant, said);
        // What says what chunks are takes room as well.
        self.inner.settle(&mut blobs);
        Ok(lease)
    }

    /// An image is mounted that reads from these: whatever was said of them before, somebody wants them. A mount that comes to nothing
    /// says nothing.
    pub fn note_mounted(&self, mounted: &[BlobId]) {
        let mut blobs = self.inner.lock();
        blobs.unwanted.retain(|blob| !mounted.contains(blob));
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
        let blob = Arc::new(CachedBlob::open(&self.inner, id, variant, generation)?);
        blobs.open.insert((id, variant), Arc::downgrade(&blob));
        Ok(blob)
    }

    /// What there is, in order of blobs.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: the directory cannot be read.
    pub fn list(&self) -> Result<Vec<CachedStatus>, CacheError> {
        let held = self.held()?;
        let blobs = self.inner.lock();
        let status = |id| {
            let since = self.inner.last_used(id).duration_since(SystemTime::UNIX_EPOCH);
            CachedStatus {
                blob: id,
                bytes: self.inner.usage(&blobs, id),
                mounted: blobs.is_in_use(id),
                pinned: blobs.pinned.contains(&id),
                last_used: since.map_or(0, |since| since.as_secs()),
            }
        };
        Ok(held.into_iter().map(status).collect())
    }

    /// What it takes.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: the directory cannot be read.
    pub fn totals(&self) -> Result<CacheTotals, CacheError> {
        let held = self.held()?;
        let blobs = self.inner.lock();
        let (mut bytes, mut evictable) = (0, 0);
        for id in &held {
            let usage = self.inner.usage(&blobs, *id);
            bytes += usage;
            evictable += if blobs.is_evictable(*id) { usage } else { 0 };
        }
        Ok(CacheTotals {
            blobs: held.len() as u64,
            bytes,
            quota_bytes: self.inner.quota.limit(),
            evictable_bytes: Some(evictable),
        })
    }

    /// Frees all that no mount uses and that is not pinned.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: the directory could not be listed, or a file not deleted; those before it are.
    pub fn prune(&self) -> Result<Kept, CacheError> {
        let mut blobs = self.inner.lock();
        let mut outcome = Kept::default();
        for (_, id) in self.inner.evictable(&blobs)? {
            outcome.freed_bytes += self.inner.usage(&blobs, id);
            self.inner.delete(&mut blobs, id)?;
            outcome.freed.push(id);
        }
        self.inner.settle(&mut blobs);
        Ok(outcome)
    }

    /// Keeps blobs from giving way to others, or no longer, across restarts.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: the file with the pins cannot be written.
    pub fn pin(&self, ids: &[BlobId], pinned: bool) -> Result<(), CacheError> {
        let mut blobs = self.inner.lock();
        for id in ids {
            if pinned {
                blobs.pinned.insert(*id)
            } else {
                blobs.pinned.remove(id)
            };
        }
        self.inner.quota.renew();
        let saved = self.inner.save_pins(&blobs);
        self.inner.settle(&mut blobs);
        saved
    }

    /// Verifies all cached chunks of these blobs, or of all if none are named. What is bad is fetched again when it is read.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: the directory or a file cannot be read.
    pub fn verify(&self, ids: &[BlobId]) -> Result<Verified, CacheError> {
        let held = self.held()?;
        let mut outcome = Verified::default();
        for id in held.into_iter().filter(|id| ids.is_empty() || ids.contains(id)) {
            let caches = self.all_of(id)?;
            // Read without the lock, so that nothing waits.
            let verified = caches.iter().map(|blob| blob.verify());
            let (chunks, bad) = verified.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
            outcome.chunks += chunks;
            if bad > 0 {
                tracing::warn!(blob = %id, chunks = bad, "cached chunks were bad: they will be fetched again");
                outcome.bad.push(BadChunks { blob: id, chunks: bad });
            }
        }
        Ok(outcome)
    }

    /// What is cached of a blob for all mounts: in one place, and in one apart for each that contradicts others.
    fn all_of(&self, id: BlobId) -> Result<Vec<Arc<CachedBlob>>, CacheError> {
        let mut blobs = self.inner.lock();
        let first = self.open_blob(&mut blobs, id, Variant(0))?;
        let apart = blobs.variants(id).filter(|(variant, _)| *variant != Variant(0)).map(|(_, blob)| blob);
        Ok(apart.chain([first]).collect())
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

    /// Deletes the blobs that no mount reads from.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: a file could not be deleted; those before it are.
    pub fn remove(&self, ids: &[BlobId]) -> Result<Removed, CacheError> {
        // Held throughout, so that nobody opens a blob between the question whether it is in use and its end.
        let mut blobs = self.inner.lock();
        let mut outcome = Removed::default();
        for &id in ids {
            if blobs.is_in_use(id) {
                outcome.in_use.push(id);
            } else if self.inner.delete(&mut blobs, id)? {
                outcome.removed.push(id);
            }
        }
        Ok(outcome)
    }

    /// Deletes all blobs but `wanted`, pinned ones, and those that mounts read from. Of the latter, those that are not wanted go
    /// when their last lease ends, unless they are wanted or an image is mounted again before.
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
        let pinned = blobs.pinned.clone();
        for id in self.held()?.into_iter().filter(|id| !wanted.contains(id) && !pinned.contains(id)) {
            if blobs.is_in_use(id) {
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

impl CacheState {
    fn lock(&self) -> MutexGuard<'_, Blobs> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The blobs and variants that there are files of.
    fn files(&self) -> Result<BTreeSet<(BlobId, Variant)>, CacheError> {
        let dir = &self.dir;
        let mut files = BTreeSet::new();
        for entry in std::fs::read_dir(dir).map_err(CacheError::io("list", dir))? {
            let name = entry.map_err(CacheError::io("list", dir))?.file_name();
            files.extend(name.to_str().and_then(files::owner));
        }
        Ok(files)
    }

    fn usage(&self, blobs: &Blobs, id: BlobId) -> u64 {
        let others = blobs.variants(id).map(|(variant, _)| variant).filter(|variant| *variant != Variant(0));
        others.chain([Variant(0)]).map(|variant| files::usage(&self.dir, id, variant)).sum()
    }

    /// Deletes a blob that nobody has a lease of; whether there were files of it.
    fn delete(&self, blobs: &mut Blobs, id: BlobId) -> Result<bool, CacheError> {
        blobs.unwanted.remove(&id);
        self.delete_variant(blobs, id, Variant(0))
    }

    fn delete_variant(&self, blobs: &mut Blobs, id: BlobId, variant: Variant) -> Result<bool, CacheError> {
        // What still works on it stores nothing any more; who opens it next gets new files, of another generation.
        if let Some(blob) = blobs.open.remove(&(id, variant)).and_then(|blob| blob.upgrade()) {
            blob.retire();
        }
        let usage = files::usage(&self.dir, id, variant);
        let deleted = files::delete(&self.dir, id, variant)?;
        self.quota.gave(usage);
        Ok(deleted)
    }

    /// A lease ends; `end` ends it.
    fn released(&self, lease: &Lease, end: impl FnOnce()) {
        let mut blobs = self.lock();
        end();
        self.quota.renew();
        let id = lease.blob.id();
        lease.blob.touch();
        if !blobs.is_leased(id) {
            self.forget_handed_over(&mut blobs.handed_over, id);
        }
        let freed = if lease.variant != Variant(0) && !lease.blob.is_leased() {
            self.delete_variant(&mut blobs, id, lease.variant).map(|_| ())
        } else {
            Ok(())
        };
        let freed = freed.and_then(|()| {
            // It may have been pinned since it was said that nobody wants it.
            if blobs.unwanted.contains(&id) && blobs.is_evictable(id) {
                tracing::info!(blob = %id, "freeing a blob that nobody keeps, with its last mount");
                self.delete(&mut blobs, id)?;
            }
            Ok(())
        });
        if let Err(error) = freed {
            tracing::warn!(blob = %id, %error, "cannot free a cached blob");
        }
        if !self.quota.fits(0) {
            self.settle(&mut blobs);
        }
    }
}
