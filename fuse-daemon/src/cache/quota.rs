//! How much the cache may hold, and what goes first when it is more: what was used longest ago. Blobs that mounts use and
//! pinned ones never go.
//!
//! All files of blobs count. A chunk is cached where there is room for it. What describes a blob is written when it is mounted,
//! room or not, for nothing can be read without it: others give way to it, and where these are all in use it is beyond the limit.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::SystemTime;

use super::blob::Variant;
use super::{BlobId, Blobs, CacheError, CacheState, chunk_info, disk, files};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Where pinned blobs are named, one a line.
const PINS: &str = "pins";

/// The part of the quota that is freed beyond what is needed, so that not each chunk frees something.
const SPARE_FRACTION: u64 = 32;

/// What file systems allocate at once, as most of them are made.
const BLOCK_BYTES: u64 = 4096;

/// Bytes on disk that the cache may take, and takes.
#[derive(Debug)]
pub(super) struct Quota {
    limit: u64,
    /// What was counted last, and stored since.
    used: AtomicU64,
    /// Whether all was freed that could be: before a lease, a pin or the wait for a mount ends, nobody need look again.
    is_exhausted: AtomicBool,
}

impl Quota {
    /// No limit where there is none.
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self {
            limit: limit.unwrap_or(u64::MAX),
            used: AtomicU64::new(0),
            is_exhausted: AtomicBool::new(false),
        }
    }

    /// The limit, if there is one.
    pub(super) fn limit(&self) -> Option<u64> {
        Some(self.limit).filter(|limit| *limit != u64::MAX)
    }

    /// Whether so many bytes more fit.
    pub(super) fn fits(&self, bytes: u64) -> bool {
        self.used.load(Ordering::Relaxed).saturating_add(bytes) <= self.limit
    }

    pub(super) fn took(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn gave(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Whether there is nothing to free.
    pub(super) fn is_exhausted(&self) -> bool {
        self.is_exhausted.load(Ordering::Relaxed)
    }

    /// Something may be freed from now on that could not before. Called, as what looks for that, under the cache's lock.
    pub(super) fn renew(&self) {
        self.is_exhausted.store(false, Ordering::Relaxed);
    }
}

/// Bytes on disk of a file, as far as a quota knows of them.
#[derive(Debug)]
pub(super) struct CountedBytes(AtomicU64);

impl CountedBytes {
    /// So many that the quota has counted.
    pub(super) fn new(bytes: u64) -> Self {
        Self(AtomicU64::new(bytes))
    }

    /// The file has so many now.
    pub(super) fn changed(&self, quota: &Quota, bytes: u64) {
        let before = self.0.swap(bytes, Ordering::AcqRel);
        quota.took(bytes.saturating_sub(before));
        quota.gave(before.saturating_sub(bytes));
    }
}

/// Bytes on disk that storing these bytes of a blob takes at most: whole blocks, and one in which it is said that they are there.
pub(super) fn taken_by(bytes: &Range<u64>) -> u64 {
    let start = bytes.start - bytes.start % BLOCK_BYTES;
    let end = bytes.end.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(u64::MAX);
    end.saturating_sub(start).saturating_add(BLOCK_BYTES)
}

impl CacheState {
    /// Frees blobs that no mount reads from until there is room for `bytes` more, as far as there are such.
    pub(super) fn make_room(&self, bytes: u64) {
        let mut blobs = self.lock();
        if blobs.handed_over.expire() {
            self.quota.renew();
        }
        self.make_room_among(&mut blobs, bytes);
    }

    /// Frees blobs where something was written that nobody made room for.
    pub(super) fn settle(&self, blobs: &mut Blobs) {
        self.count(blobs);
        if !self.quota.fits(0) {
            self.make_room_among(blobs, 0);
        }
    }

    fn make_room_among(&self, blobs: &mut Blobs, bytes: u64) {
        if self.quota.limit == u64::MAX || self.quota.is_exhausted() {
            return;
        }
        self.count(blobs);
        let evictable = match self.evictable(blobs) {
            Ok(evictable) => evictable,
            Err(error) => {
                let error = crate::describe(&error);
                return tracing::warn!(error, "cannot make room in the cache");
            }
        };
        let spare = self.quota.limit / SPARE_FRACTION;
        let (mut freed, mut number) = (0, 0);
        for (_, id) in evictable {
            if self.quota.fits(bytes.saturating_add(spare)) {
                break;
            }
            let usage = self.usage(blobs, id);
            if let Err(error) = self.delete(blobs, id) {
                tracing::warn!(blob = %id, %error, "cannot free a cached blob");
                continue;
            }
            (freed, number) = (freed + usage, number + 1);
        }
        self.quota.is_exhausted.store(!self.quota.fits(bytes), Ordering::Relaxed);
        if number > 0 {
            tracing::info!(
                blobs = number,
                bytes = freed,
                quota = self.quota.limit,
                "freed blobs that were used longest ago"
            );
        }
    }

    /// Counts what there is, where there is a limit.
    pub(super) fn count(&self, blobs: &Blobs) {
        if self.quota.limit == u64::MAX {
            return;
        }
        let files = match self.files() {
            Ok(files) => files,
            Err(error) => {
                let error = crate::describe(&error);
                // What was counted before is nearer than nothing.
                return tracing::warn!(error, "cannot count what the cache takes");
            }
        };
        let ids: BTreeSet<BlobId> = files.into_iter().map(|(id, _)| id).collect();
        let used = ids.into_iter().map(|id| self.usage(blobs, id)).sum();
        self.quota.used.store(used, Ordering::Relaxed);
    }

    /// Blobs that may go, those that were used longest ago first.
    pub(super) fn evictable(&self, blobs: &Blobs) -> Result<BTreeSet<(SystemTime, BlobId)>, CacheError> {
        let ids = self.files()?.into_iter().map(|(id, _)| id);
        let ids = ids.filter(|id| blobs.is_evictable(*id));
        Ok(ids.map(|id| (self.last_used(id), id)).collect())
    }

    /// When the blob was used last: its data file is touched when the last lease ends. Before its first mount there may be its
    /// chunk information alone.
    pub(super) fn last_used(&self, id: BlobId) -> SystemTime {
        let [data, ..] = files::paths(&self.dir, id, Variant(0));
        let described =
            || chunk_info::paths(&self.dir, id).iter().filter_map(|path| files::modified(path)).max();
        files::modified(&data).or_else(described).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    pub(super) fn load_pins(&self) -> Result<(), CacheError> {
        let path = self.dir.join(PINS);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            text => text.map_err(CacheError::io("read", &path))?,
        };
        self.lock().pinned = text.lines().filter_map(|line| line.parse().ok()).collect();
        Ok(())
    }

    pub(super) fn save_pins(&self, blobs: &Blobs) -> Result<(), CacheError> {
        let pinned: BTreeSet<&BlobId> = blobs.pinned.iter().collect();
        let text: String = pinned.into_iter().map(|blob| format!("{blob}\n")).collect();
        let path = self.dir.join(PINS);
        disk::replace(&path, |file| file.write_all(text.as_bytes()))
            .map(drop)
            .map_err(CacheError::io("write", &path))
    }
}
