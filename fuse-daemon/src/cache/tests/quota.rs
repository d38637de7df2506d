//! A cache that may take so much and no more.

use super::*;

/// A cache of at most so many bytes, in which each named blob may have a chunk of 64 KiB.
struct Small {
    dir: tempfile::TempDir,
    cache: Cache,
}

impl Small {
    fn new(quota: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open_with_quota(dir.path(), FIRST_BOOT, Some(quota)).unwrap();
        Self { dir, cache }
    }

    fn large() -> Chunk {
        Chunk { uncompressed_size: 65_536, ..chunk(0, 0) }
    }

    fn lease(&self, name: &str) -> Lease {
        self.cache.blob(blob_id(name), &coding(), 65_536, &[(ChunkIndex(0), Self::large())]).unwrap()
    }

    fn store(lease: &Lease) -> Result<(), StoreError> {
        lease.blob().store(ChunkIndex(0), &Self::large(), &[7; 65_536])
    }

    /// Stores a chunk of a blob, which was used last at that second.
    fn used_at(&self, name: &str, second: u64) {
        let lease = self.lease(name);
        Self::store(&lease).unwrap();
        drop(lease);
        let [data, ..] = files::paths(self.dir.path(), blob_id(name), Variant(0));
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second);
        File::options().write(true).open(data).unwrap().set_modified(time).unwrap();
    }

    fn held(&self) -> BTreeSet<BlobId> {
        self.cache.held().unwrap()
    }
}

#[test]
fn over_the_quota_what_was_used_longest_ago_gives_way_but_nothing_open_or_pinned() {
    // Four blobs and a half, each with what says what it has.
    let small = Small::new(360 << 10);
    let open = small.lease("open");
    Small::store(&open).unwrap();
    for (name, second) in [("second", 2), ("pinned", 1), ("third", 3)] {
        small.used_at(name, second);
    }
    small.cache.pin(&[blob_id("pinned")], true).unwrap();
    let new = small.lease("new");
    Small::store(&new).unwrap();
    let expected = BTreeSet::from(["open", "pinned", "third", "new"].map(blob_id));
    assert_eq!(small.held(), expected);
    let total: u64 = expected.iter().map(|id| small.cache.usage(*id)).sum();
    assert!(total <= 360 << 10, "{total}");
    let totals = small.cache.totals().unwrap();
    assert_eq!((totals.blobs, totals.bytes, totals.quota_bytes), (4, total, Some(360 << 10)));
    assert_eq!(totals.evictable_bytes, Some(small.cache.usage(blob_id("third"))));
    // The next daemon knows what is pinned.
    let Small { dir, cache } = small;
    drop((open, new, cache));
    let cache = Cache::open_with_quota(dir.path(), FIRST_BOOT, Some(65_536 * 3 / 2)).unwrap();
    assert_eq!(cache.held().unwrap(), [blob_id("pinned")].into());
    assert!(cache.prune().unwrap().freed.is_empty());
    cache.pin(&[blob_id("pinned")], false).unwrap();
    assert_eq!(cache.prune().unwrap().freed, [blob_id("pinned")]);
}

#[test]
fn what_is_pinned_after_nobody_wanted_it_stays_when_its_last_mount_ends() {
    let small = Small::new(360 << 10);
    let [pinned, other] = ["pinned", "other"].map(|name| small.lease(name));
    assert_eq!(small.cache.keep(&[]).unwrap().in_use.len(), 2);
    small.cache.pin(&[blob_id("pinned")], true).unwrap();
    drop((pinned, other));
    assert_eq!(small.held(), [blob_id("pinned")].into());
}

#[test]
fn where_open_blobs_fill_the_quota_nothing_more_is_taken() {
    let small = Small::new(180 << 10);
    let leases = ["a", "b", "c"].map(|name| small.lease(name));
    Small::store(&leases[0]).unwrap();
    let refused = Small::store(&leases[1]).and_then(|()| Small::store(&leases[2])).unwrap_err();
    assert!(matches!(&refused, StoreError::Io(error) if is_full(error)), "{refused}");
    let [first, others @ ..] = leases;
    drop(first);
    Small::store(&others[1]).unwrap();
}

#[test]
fn of_a_full_quota_what_is_removed_is_free_for_others() {
    let remove = |small: &Small, first: Lease| {
        drop(first);
        assert_eq!(small.cache.remove(&[blob_id("a")]).unwrap().removed, [blob_id("a")]);
    };
    let unwant = |small: &Small, first: Lease| {
        assert_eq!(small.cache.keep(&[]).unwrap().in_use.len(), 3);
        drop(first);
    };
    for go in [&remove as &dyn Fn(&Small, Lease), &unwant] {
        let small = Small::new(180 << 10);
        let [a, b, c] = ["a", "b", "c"].map(|name| small.lease(name));
        Small::store(&a).and_then(|()| Small::store(&b)).unwrap();
        assert!(Small::store(&c).is_err());
        go(&small, a);
        assert!(!small.held().contains(&blob_id("a")));
        Small::store(&c).unwrap();
    }
}

#[test]
fn a_chunk_that_is_fetched_again_counts_once() {
    // It and room for another one.
    let small = Small::new(180 << 10);
    let lease = small.lease("a");
    for _ in 0..10 {
        Small::store(&lease).unwrap();
        lease.blob().discard(ChunkIndex(0));
    }
}

#[test]
fn what_can_be_freed_is_looked_for_again_when_a_lease_or_a_pin_ends() {
    let small = Small::new(100 << 10);
    let [a, b] = ["a", "b"].map(|name| small.lease(name));
    Small::store(&a).unwrap();
    assert!(Small::store(&b).is_err());
    // Behind the cache's back, to tell whether it looks.
    let stray = small.dir.path().join(format!("{}.blob.data", blob_id("stray").0));
    std::fs::write(&stray, [1; 4096]).unwrap();
    assert!(Small::store(&b).is_err());
    assert!(stray.exists());
    small.cache.pin(&[blob_id("other")], false).unwrap();
    assert!(Small::store(&b).is_err());
    assert!(!stray.exists());
    drop(a);
    Small::store(&b).unwrap();
}

#[test]
fn what_describes_a_blob_counts_and_others_give_way_to_it() {
    // A blob with its chunk, and what describes two more.
    let small = Small::new((76 + 16) << 10);
    let total = |small: &Small| small.held().iter().map(|id| small.cache.usage(*id)).sum::<u64>();
    small.used_at("old", 1);
    let leases = ["a", "b"].map(|name| small.lease(name));
    assert_eq!(total(&small), (76 + 16) << 10);
    let third = small.lease("c");
    assert_eq!(small.held(), ["a", "b", "c"].map(blob_id).into());
    // Beyond the limit where nothing may give way, until a mount ends.
    Small::store(&third).unwrap();
    let fourth = small.lease("d");
    assert!(total(&small) > (76 + 16) << 10);
    drop(leases);
    assert!(total(&small) <= (76 + 16) << 10);
    assert!(small.held().is_superset(&["c", "d"].map(blob_id).into()));
    drop(fourth);
    // Who has said that it has a blob is known in another file of it.
    let fifth = small.lease("e");
    small.cache.remember_answer(blob_id("e"), "registry:e").unwrap().sync().unwrap();
    assert_eq!(small.cache.usage(blob_id("e")), 12 << 10);
    assert!(total(&small) <= (76 + 16) << 10);
    drop((third, fifth));
}

#[test]
fn what_is_pinned_beyond_the_quota_goes_when_it_is_not_any_more() {
    let small = Small::new(80 << 10);
    small.used_at("pinned", 1);
    small.cache.pin(&[blob_id("pinned")], true).unwrap();
    let others = ["a", "b"].map(|name| small.lease(name));
    assert!(small.held().contains(&blob_id("pinned")));
    small.cache.pin(&[blob_id("pinned")], false).unwrap();
    assert_eq!(small.held(), ["a", "b"].map(blob_id).into());
    drop(others);
}

#[test]
fn a_chunk_takes_whole_blocks() {
    let small = Small::new(24 << 10);
    let across = Chunk { uncompressed_offset: 4090, uncompressed_size: 16, ..chunk(0, 0) };
    let lease =
        small.cache.blob(blob_id("a"), &coding(), 65_536, &[(ChunkIndex(0), across.clone())]).unwrap();
    let other = small.lease("b");
    // What describes both takes 16 KiB, so this would take 28.
    assert!(lease.blob().store(ChunkIndex(0), &across, &[7; 16]).is_err());
    drop(other);
    lease.blob().store(ChunkIndex(0), &across, &[7; 16]).unwrap();
    assert_eq!(small.cache.usage(blob_id("a")), 20 << 10);
}
