//! The disk refuses a change of the cache's files, at any moment: once or for good, with a part of it done or nothing.

use proptest::prelude::*;

use super::images::{IMAGES, Step, content, image, steps};
use super::*;
use crate::cache::disk::faults::{Fault, plan, plan_reads};

/// What the daemon has open.
struct World {
    dir: tempfile::TempDir,
    cache: Option<Cache>,
    mounted: Vec<(usize, Lease)>,
    late: Vec<Arc<CachedBlob>>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, cache: None, mounted: Vec::new(), late: Vec::new() }
    }

    /// The cache, which a daemon that could not open it opens when it starts the next time.
    fn cache(&mut self) -> Option<Cache> {
        if self.cache.is_none() {
            self.cache = told(Cache::open(self.dir.path(), FIRST_BOOT));
        }
        self.cache.clone()
    }

    fn take(&mut self, step: &Step) {
        let Some(cache) = self.cache() else { return };
        match *step {
            Step::Mount(number) => {
                let lease = told(cache.blob(blob_id("a"), &coding(), 70 * CHUNK, &image(number)));
                self.late.extend(lease.as_ref().map(|lease| Arc::clone(lease.blob())));
                self.mounted.extend(lease.map(|lease| (number, lease)));
            }
            Step::Unmount(which) if !self.mounted.is_empty() => {
                self.mounted.remove(which % self.mounted.len());
            }
            Step::Read(which, chunk) if !self.mounted.is_empty() => {
                let (number, lease) = &self.mounted[which % self.mounted.len()];
                let said = image(*number);
                read(lease, &said[chunk % said.len()]);
            }
            Step::Late(which, chunk) if !self.late.is_empty() => {
                let blob = &self.late[which % self.late.len()];
                let said = image(which % IMAGES);
                let (index, chunk) = &said[chunk % said.len()];
                let _ = blob.store(*index, chunk, &content(chunk));
            }
            Step::Restart => {
                self.mounted.clear();
                self.late.clear();
                self.cache = None;
            }
            Step::Remove => drop(told(cache.remove(&[blob_id("a")]))),
            _ => {}
        }
        self.mounted.iter().for_each(|(number, lease)| look(lease, *number));
    }
}

/// What an operation gives, unless the disk has failed it.
fn told<T>(result: Result<T, CacheError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(CacheError::Io { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Reads a chunk as the front does. It is what the image says, or the reader is told of the disk.
fn read(lease: &Lease, (index, chunk): &Said) {
    let blob = lease.blob();
    let described = blob.describe(*index).expect("a mounted image's chunks are described");
    assert_eq!(described.chunk, *chunk, "as the image describes them");
    match blob.state(*index) {
        ChunkState::Ready => {}
        ChunkState::Claimed if blob.claimed(chunk).is_ok_and(|claimed| claimed == content(chunk)) => {
            assert!(blob.confirm(*index, chunk));
        }
        _ => match blob.store(*index, chunk, &content(chunk)) {
            Err(StoreError::Io(_)) => return,
            stored => stored.unwrap(),
        },
    }
    let mut bytes = vec![0; chunk.uncompressed_size as usize];
    match blob.read(*index, &mut bytes, chunk.uncompressed_offset) {
        Ok(ready) => assert!(ready && bytes == content(chunk), "chunk {}: {ready}, {bytes:?}", index.0),
        Err(error) => assert!(error.raw_os_error().is_some(), "{error}"),
    }
}

/// What is said to be ready is right.
fn look(lease: &Lease, number: usize) {
    for (index, chunk) in image(number) {
        let mut bytes = vec![0; chunk.uncompressed_size as usize];
        if lease.blob().read(index, &mut bytes, chunk.uncompressed_offset).is_ok_and(|ready| ready) {
            assert_eq!(bytes, content(&chunk), "image {number}, chunk {}", index.0);
        }
    }
}

/// Takes the steps while the disk fails; then the next daemon mounts an image of what there is. Whether it came to the
/// failure.
fn outlive(steps: &[Step], fault: Fault) -> bool {
    let mut world = World::new();
    plan(Some(fault));
    steps.iter().for_each(|step| world.take(step));
    let failed = plan(None);
    // Nothing is left in the daemon of mounts that failed: whoever is alone contradicts nobody.
    world.mounted.clear();
    if let Some(cache) = &world.cache {
        for number in 0..IMAGES {
            let lease = cache.blob(blob_id("a"), &coding(), 70 * CHUNK, &image(number)).unwrap();
            assert_eq!(lease.variant, Variant(0), "image {number}");
            look(&lease, number);
        }
    }
    world.take(&Step::Restart);
    world.cache = None;
    // Two of them, others for each change that fails.
    for number in [0, fault.after as usize % IMAGES] {
        let copy = copy(world.dir.path());
        let cache = Cache::open(copy.path(), FIRST_BOOT).unwrap();
        let lease = cache.blob(blob_id("a"), &coding(), 70 * CHUNK, &image(number)).unwrap();
        look(&lease, number);
        image(number).iter().for_each(|said| super::images::read(&lease, said));
    }
    failed
}

fn copy(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// All kinds of failure, at a change.
fn faults(after: u64) -> impl Iterator<Item = Fault> {
    let kinds = [(nix::libc::EIO, false), (nix::libc::EIO, true), (nix::libc::ENOSPC, false)];
    let faults =
        kinds.map(|(errno, torn)| [false, true].map(|for_good| Fault { after, for_good, torn, errno }));
    faults.into_iter().flatten()
}

/// A day of a blob: shared, contradicted, displaced, removed while work is in progress, and found by next daemons.
fn day() -> Vec<Step> {
    let (mount, read) =
        (|number| vec![Step::Mount(number)], |which| (0..6).map(move |chunk| Step::Read(which, chunk)));
    let all = || vec![Step::Unmount(0), Step::Unmount(0), Step::Unmount(0)];
    let mut day = Vec::new();
    day.extend(mount(2).into_iter().chain(read(0)).chain(mount(0)).chain(read(1)));
    // One that contradicts them has a cache apart; alone, it takes the place of what they said.
    day.extend(mount(3).into_iter().chain(read(2)).chain(all()).chain(mount(3)).chain(read(0)).chain(all()));
    day.extend(mount(6).into_iter().chain(read(0)).chain([Step::Restart]));
    day.extend(mount(0).into_iter().chain(read(0)).chain(all()).chain([Step::Remove, Step::Late(0, 1)]));
    day.extend(mount(6).into_iter().chain([Step::Late(0, 2)]).chain(read(0)).chain([Step::Restart]));
    day.extend(mount(5).into_iter().chain(read(0)).chain(mount(1)).chain(read(1)));
    day
}

#[test]
fn whichever_change_of_the_disk_fails_no_byte_is_wrong_and_the_next_daemon_goes_on() {
    let day = day();
    let failed = |after: &u64| faults(*after).filter(|fault| outlive(&day, *fault)).count() > 0;
    let changes = (0..).take_while(failed).count();
    assert!(changes > 60, "{changes} changes were made to fail");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_byte_is_wrong_whatever_images_do_while_the_disk_fails(
        steps in steps(),
        after in 0..80u64,
        kind in 0..6usize,
    ) {
        outlive(&steps, faults(after).nth(kind).unwrap());
    }
}

#[test]
fn pins_and_answers_stay_what_they_were_or_become_what_they_were_to_be() {
    let [id, other] = ["a", "b"].map(blob_id);
    let sources = |name: &str| [name.to_owned()];
    let outlive = |fault: Fault| {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
        let leases = [id, other].map(|id| cache.blob(id, &coding(), CHUNK, &[]).unwrap());
        cache.remember_answer(id, "first").unwrap().sync().unwrap();
        cache.pin(&[id], true).unwrap();
        plan(Some(fault));
        let remembered = cache.remember_answer(id, "second").and_then(Remembered::sync).is_ok();
        let pinned = cache.pin(&[other], true).is_ok();
        let failed = plan(None);
        drop((leases, cache));
        let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
        let answered = |source| cache.was_answered(id, &sources(source)).unwrap();
        assert!(answered("first") && (answered("second") || !remembered), "{fault:?}");
        let pins: Vec<BlobId> = cache
            .list()
            .unwrap()
            .into_iter()
            .filter(|listed| listed.pinned)
            .map(|listed| listed.blob)
            .collect();
        assert!(pins.contains(&id) && (pins.contains(&other) || !pinned), "{fault:?}: {pins:?}");
        failed
    };
    let changes =
        (0..).take_while(|&after| faults(after).filter(|fault| outlive(*fault)).count() > 0).count();
    assert!(changes > 5, "{changes} changes were made to fail");
}

#[test]
fn a_chunk_that_the_disk_cannot_read_is_there_when_it_can_again() {
    use nix::libc::{EBADMSG, EIO, EMFILE, ENODATA, ENOMEM, EUCLEAN};
    let dir = tempfile::tempdir().unwrap();
    let blob = open(dir.path(), FIRST_BOOT);
    store(&blob, 4, 1);
    let read = |errno| {
        store(&blob, 3, 1);
        plan_reads(Some(Fault { errno, ..Fault::default() }));
        let read = blob.read(ChunkIndex(3), &mut [0; 16], 3 * CHUNK);
        (read.map_err(|error| error.raw_os_error()), blob.state(ChunkIndex(3)))
    };
    // That says nothing of the disk.
    for errno in [EMFILE, ENOMEM] {
        assert_eq!(read(errno), (Err(Some(errno)), ChunkState::Ready));
    }
    for errno in [EBADMSG, ENODATA, EUCLEAN, EIO] {
        assert_eq!(read(errno), (Ok(false), ChunkState::Ready));
    }
    let mut bytes = [0; 16];
    assert!(blob.read(ChunkIndex(3), &mut bytes, 3 * CHUNK).unwrap());
    // Nor is it lost to who verifies all.
    plan_reads(Some(Fault { errno: EIO, for_good: true, ..Fault::default() }));
    assert_eq!(blob.verify(), (2, 2));
    plan_reads(None);
    assert_eq!([3, 4].map(|chunk| blob.state(ChunkIndex(chunk))), [ChunkState::Ready; 2]);
}

#[test]
fn a_map_that_the_disk_cannot_read_costs_a_look_at_each_chunk_and_no_mount() {
    let dir = tempfile::tempdir().unwrap();
    let blob = open(dir.path(), FIRST_BOOT);
    store(&blob, 3, 1);
    drop(blob);
    plan_reads(Some(Fault { errno: nix::libc::EIO, ..Fault::default() }));
    let blob = open(dir.path(), FIRST_BOOT);
    // Of one that was never there it cannot be known either.
    assert_eq!([2, 3].map(|chunk| blob.state(ChunkIndex(chunk))), [ChunkState::Claimed; 2]);
    assert_eq!(blob.claimed(&chunk(3, 0)).unwrap(), [1; 16]);
    store(&blob, 4, 1);
    drop(blob);
    let blob = open(dir.path(), FIRST_BOOT);
    let states = [3, 4].map(|chunk| blob.state(ChunkIndex(chunk)));
    assert_eq!(states, [ChunkState::Claimed, ChunkState::Ready], "as the new map says");
}
