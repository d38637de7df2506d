//! The blobs of mounts that outlive this process: somebody has their descriptors, and has the next process serve them on. Until it has
//! leases of them, nothing of them is freed.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use super::{BlobId, BootId, Cache, CacheState, disk};

/// Where these blobs are named, one a line, below the boot in which their mounts were made.
const HANDED_OVER: &str = "handed-over";

/// How long blobs wait for the mounts of an earlier process: as long as snapshotters hold a mount that is refused, after which
/// nobody takes it over any more.
const PATIENCE: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct HandedOverBlobs {
    /// Of mounts of this process.
    own: HashSet<BlobId>,
    /// Of mounts of an earlier one that this one does not serve yet, …
    awaited: HashSet<BlobId>,
    /// … until then.
    until: Option<Instant>,
}

impl HandedOverBlobs {
    /// What an earlier process left. A file that cannot be read says nothing.
    pub(super) fn load(dir: &Path, boot: &BootId) -> Self {
        let text = std::fs::read_to_string(dir.join(HANDED_OVER)).unwrap_or_default();
        let mut lines = text.lines();
        if lines.next() != Some(hex::encode(boot.0).as_str()) {
            return Self::default();
        }
        let awaited = lines.filter_map(|line| line.parse().ok()).collect();
        Self { own: HashSet::new(), awaited, until: Instant::now().checked_add(PATIENCE) }
    }

    /// Whether a mount of an earlier process may come that reads from the blob.
    pub(super) fn is_awaited(&self, id: BlobId) -> bool {
        self.awaited.contains(&id) && self.until.is_some_and(|until| Instant::now() < until)
    }

    /// Waits no longer for what has not come in time; whether there was such.
    pub(super) fn expire(&mut self) -> bool {
        let is_over = self.until.is_none_or(|until| Instant::now() >= until);
        if !is_over || self.awaited.is_empty() {
            return false;
        }
        self.awaited.clear();
        true
    }

    /// A mount has a lease of the blob: if it was awaited, it is this process's, and as before somebody else's after it.
    pub(super) fn leased(&mut self, id: BlobId) {
        if self.awaited.remove(&id) {
            self.own.insert(id);
        }
    }
}

impl Cache {
    /// Keeps blobs that mounts have leases of for the next process as well: these mounts may outlive this one.
    pub fn hand_over(&self, blobs: &[BlobId]) {
        let mut state = self.inner.lock();
        let leased: Vec<BlobId> = blobs.iter().copied().filter(|blob| state.is_leased(*blob)).collect();
        let handed_over = &mut state.handed_over;
        let before = handed_over.own.len();
        handed_over.own.extend(leased);
        if handed_over.own.len() > before {
            self.inner.save_handed_over(handed_over);
        }
    }
}

impl CacheState {
    /// The last lease of a blob has ended.
    pub(super) fn forget_handed_over(&self, handed_over: &mut HandedOverBlobs, id: BlobId) {
        if handed_over.own.remove(&id) {
            self.save_handed_over(handed_over);
        }
    }

    /// Not durably: after a power cut there are no mounts. Where it fails, the next process may have to fetch again.
    fn save_handed_over(&self, handed_over: &HandedOverBlobs) {
        let blobs: BTreeSet<&BlobId> = handed_over.own.iter().chain(&handed_over.awaited).collect();
        let mut text = format!("{}\n", hex::encode(self.boot.0));
        text.extend(blobs.into_iter().map(|blob| format!("{blob}\n")));
        let path = self.dir.join(HANDED_OVER);
        if let Err(error) = disk::replace(&path, |file| file.write_all(text.as_bytes())) {
            tracing::warn!(path = %path.display(), %error, "cannot note the blobs of mounts that outlive this process");
        }
    }
}

#[cfg(test)]
mod tests {
    use rafs::blob::{Chunk, ChunkIndex};
    use rafs::digest::Digest;

    use super::super::Lease;
    use super::super::tests::{FIRST_BOOT, blob_id, coding};
    use super::*;

    fn lease(cache: &Cache, name: &str) -> Lease {
        let chunk = Chunk {
            digest: Digest([7; 32]),
            compressed_offset: 0,
            compressed_size: 16,
            uncompressed_offset: 0,
            uncompressed_size: 16,
            compressed: true,
            batch: None,
        };
        let lease = cache.blob(blob_id(name), &coding(), 4096, &[(ChunkIndex(0), chunk.clone())]).unwrap();
        lease.blob().store(ChunkIndex(0), &chunk, &[7; 16]).unwrap();
        lease
    }

    /// The directory of a process that was killed while the mounts of two blobs of three were handed over.
    fn of_killed() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
        let leases = ["one", "two", "own"].map(|name| lease(&cache, name));
        cache.hand_over(&["one", "two", "never leased"].map(blob_id));
        let noted = std::fs::read(dir.path().join(HANDED_OVER)).unwrap();
        drop((leases, cache));
        std::fs::write(dir.path().join(HANDED_OVER), noted).unwrap();
        dir
    }

    fn noted(dir: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(dir.join(HANDED_OVER)).unwrap();
        text.lines().skip(1).map(ToOwned::to_owned).collect()
    }

    #[test]
    fn blobs_wait_for_their_mounts_and_go_with_these_or_when_nobody_comes() {
        let dir = of_killed();
        // As little as this makes all go that may.
        let cache = Cache::open_with_quota(dir.path(), FIRST_BOOT, Some(1)).unwrap();
        let [one, two] = ["one", "two"].map(blob_id);
        assert_eq!(cache.held().unwrap(), [one, two].into());
        assert!(cache.list().unwrap().iter().all(|blob| blob.mounted));
        assert_eq!(cache.prune().unwrap().freed, []);
        assert_eq!(cache.remove(&[one, two]).unwrap().in_use, [one, two]);
        assert_eq!(cache.keep(&[]).unwrap().in_use.len(), 2);

        let taken_over = cache.blob(one, &coding(), 4096, &[]).unwrap();
        assert_eq!(noted(dir.path()).len(), 2);
        assert_eq!(cache.keep(&[]).unwrap().in_use.len(), 2);
        drop(taken_over);
        assert_eq!(noted(dir.path()), [two.to_string()]);
        assert_eq!(cache.held().unwrap(), [two].into());
        cache.inner.lock().handed_over.until = Some(Instant::now());
        cache.inner.make_room(0);
        assert_eq!(cache.held().unwrap(), [].into());
    }

    #[test]
    fn mounts_of_another_boot_are_not_waited_for() {
        let dir = of_killed();
        let cache = Cache::open(dir.path(), BootId([2; 16])).unwrap();
        assert_eq!(cache.keep(&[]).unwrap().freed.len(), 3);
    }
}
