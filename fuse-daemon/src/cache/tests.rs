mod faults;
mod quota;
mod withheld;

use std::collections::HashMap;

use nix::fcntl::FallocateFlags;
use proptest::prelude::*;
use rafs::blob::{Chunk, ChunkIndex};
use rafs::compress::Compressor;
use rafs::digest::{Digest, DigestAlgorithm};

use super::*;

pub(super) const FIRST_BOOT: BootId = BootId([1; 16]);
const SECOND_BOOT: BootId = BootId([2; 16]);
const CHUNK: u64 = 4096;

pub(super) fn blob_id(name: &str) -> BlobId {
    BlobId(DigestAlgorithm::Sha256.digest(name.as_bytes()))
}

pub(super) fn coding() -> Arc<Blob> {
    Arc::new(Blob::coding(4096, Compressor::None, DigestAlgorithm::Blake3))
}

/// Chunk `index` with a content that stands for its digest.
fn chunk(index: u32, content: u8) -> Chunk {
    Chunk {
        digest: Digest([content; 32]),
        compressed_offset: u64::from(index) * 100,
        compressed_size: 16,
        uncompressed_offset: u64::from(index) * CHUNK,
        uncompressed_size: 16,
        compressed: true,
        batch: None,
    }
}

fn said(chunks: &[(u32, u8)]) -> Vec<Said> {
    chunks.iter().map(|&(index, content)| (ChunkIndex(index), chunk(index, content))).collect()
}

/// Some at the edges of words, segments and the format.
const INDEXES: [u32; 12] = [0, 1, 2, 3, 4, 62, 63, 64, 70, 65_535, 65_536, CHUNK_LIMIT - 1];

fn open_in(cache: &Cache) -> Arc<CachedBlob> {
    let said = said(&INDEXES.map(|index| (index, 0)));
    Arc::clone(cache.blob(blob_id("a"), &coding(), 100 * CHUNK, &said).unwrap().blob())
}

fn open(dir: &Path, boot: BootId) -> Arc<CachedBlob> {
    open_in(&Cache::open(dir, boot).unwrap())
}

fn store(blob: &CachedBlob, index: u32, byte: u8) {
    blob.store(ChunkIndex(index), &chunk(index, 0), &[byte; 16]).unwrap();
}

fn data_file(dir: &Path) -> std::path::PathBuf {
    files::paths(dir, blob_id("a"), Variant(0))[0].clone()
}

#[test]
fn a_stored_chunk_is_ready_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let blob = open(dir.path(), FIRST_BOOT);
    assert_eq!(blob.state(ChunkIndex(70)), ChunkState::Missing);
    blob.store(ChunkIndex(70), &chunk(70, 0), b"chunk of 16 byte").unwrap();
    let mut buffer = [0; 4];
    assert!(blob.read(ChunkIndex(70), &mut buffer, 70 * CHUNK + 1).unwrap());
    assert_eq!((&buffer, blob.state(ChunkIndex(70))), (b"hunk", ChunkState::Ready));
    assert!(!blob.read(ChunkIndex(71), &mut buffer, 70 * CHUNK + 1).unwrap());
    assert_eq!(blob.state(ChunkIndex(71)), ChunkState::Missing);
}

#[test]
fn within_a_boot_chunks_stay_ready_without_a_clean_end() {
    let dir = tempfile::tempdir().unwrap();
    store(&open(dir.path(), FIRST_BOOT), 3, 1);
    assert_eq!(open(dir.path(), FIRST_BOOT).state(ChunkIndex(3)), ChunkState::Ready);
}

#[test]
fn chunks_of_another_boot_are_claims_until_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let blob = open(dir.path(), FIRST_BOOT);
    store(&blob, 3, 1);
    store(&blob, 4, 1);
    drop(blob);
    let blob = open(dir.path(), SECOND_BOOT);
    assert_eq!(blob.state(ChunkIndex(3)), ChunkState::Claimed);
    assert!(blob.confirm(ChunkIndex(3), &chunk(3, 0)));
    blob.discard(ChunkIndex(4));
    assert_eq!(blob.state(ChunkIndex(3)), ChunkState::Ready);
    drop(blob);
    let blob = open(dir.path(), SECOND_BOOT);
    assert_eq!([3, 4].map(|chunk| blob.state(ChunkIndex(chunk))), [ChunkState::Ready, ChunkState::Missing]);
}

#[test]
fn a_map_whose_data_is_gone_promises_nothing() {
    let dir = tempfile::tempdir().unwrap();
    store(&open(dir.path(), FIRST_BOOT), 3, 1);
    std::fs::remove_file(data_file(dir.path())).unwrap();
    assert_eq!(open(dir.path(), FIRST_BOOT).state(ChunkIndex(3)), ChunkState::Missing);
}

#[test]
fn a_file_that_is_no_map_becomes_one() {
    let dir = tempfile::tempdir().unwrap();
    store(&open(dir.path(), FIRST_BOOT), 3, 1);
    std::fs::write(&files::paths(dir.path(), blob_id("a"), Variant(0))[1], vec![0xff; 5000]).unwrap();
    let blob = open(dir.path(), FIRST_BOOT);
    assert_eq!(blob.state(ChunkIndex(3)), ChunkState::Missing);
    store(&blob, 3, 1);
    drop(blob);
    assert_eq!(open(dir.path(), FIRST_BOOT).state(ChunkIndex(3)), ChunkState::Ready);
}

#[test]
fn usage_counts_what_is_on_disk_not_the_length() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
    assert_eq!(cache.usage(blob_id("a")), 0);
    let large = Chunk { uncompressed_size: 65_536, ..chunk(0, 0) };
    let said = [(ChunkIndex(0), large.clone())];
    let lease = cache.blob(blob_id("a"), &coding(), 1 << 30, &said).unwrap();
    lease.blob().store(ChunkIndex(0), &large, &[7; 65_536]).unwrap();
    let usage = cache.usage(blob_id("a"));
    assert!((65_536..1 << 20).contains(&usage), "{usage}");
}

#[test]
fn a_blob_in_use_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
    let (used, unused, unknown) = (blob_id("used"), blob_id("unused"), blob_id("unknown"));
    let held = cache.blob(used, &coding(), CHUNK, &[]).unwrap();
    drop(cache.blob(unused, &coding(), CHUNK, &[]).unwrap());
    let removed = cache.remove(&[used, unused, unknown]).unwrap();
    assert_eq!(removed, Removed { removed: vec![unused], in_use: vec![used] });
    drop(held);
    assert_eq!(cache.remove(&[used]).unwrap().removed, [used]);
    assert_eq!(cache.usage(used), 0);
}

#[test]
fn what_is_not_kept_goes_at_once_or_with_its_last_lease_unless_it_is_mounted_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
    let lease = |name: &str| cache.blob(blob_id(name), &coding(), CHUNK, &[]).unwrap();
    let [one, two, again, tried] = ["shared", "shared", "again", "tried"].map(lease);
    drop((lease("kept"), lease("lost")));
    let kept = cache.keep(&[blob_id("kept"), blob_id("never seen")]).unwrap();
    assert_eq!(kept.freed, [blob_id("lost")]);
    assert_eq!(BTreeSet::from_iter(kept.in_use), ["shared", "again", "tried"].map(blob_id).into());
    drop(one);
    assert!(cache.held().unwrap().contains(&blob_id("shared")));
    drop(two);
    let mounted = lease("again");
    cache.note_mounted(&[blob_id("again")]);
    drop((again, mounted));
    // A mount that fails has had a lease as well.
    let failed = lease("tried");
    drop((tried, failed));
    assert_eq!(cache.held().unwrap(), [blob_id("kept"), blob_id("again")].into());
    // A daemon that starts finds what there is.
    drop(cache);
    let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
    assert_eq!(cache.keep(&[]).unwrap().freed.len(), 2);
    assert!(cache.held().unwrap().is_empty());
}

#[test]
fn what_is_listed_and_verified_is_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
    let content = b"chunk of 16 byte";
    let good = Chunk { digest: DigestAlgorithm::Blake3.digest(content), ..chunk(0, 0) };
    let bad = Chunk { digest: DigestAlgorithm::Blake3.digest(content), ..chunk(1, 0) };
    let said = [(ChunkIndex(0), good.clone()), (ChunkIndex(1), bad.clone())];
    let lease = cache.blob(blob_id("a"), &coding(), CHUNK, &said).unwrap();
    lease.blob().store(ChunkIndex(0), &good, content).unwrap();
    lease.blob().store(ChunkIndex(1), &bad, content).unwrap();
    let file = File::options().write(true).open(data_file(dir.path())).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", CHUNK + 3).unwrap();
    let expected = Verified { chunks: 2, bad: vec![BadChunks { blob: blob_id("a"), chunks: 1 }] };
    assert_eq!(cache.verify(&[]).unwrap(), expected);
    assert_eq!(cache.verify(&[blob_id("other")]).unwrap(), Verified::default());
    assert_eq!([0, 1].map(|index| lease.blob().is_ready(ChunkIndex(index))), [true, false]);
    let listed = cache.list().unwrap();
    assert_eq!(
        (listed.len(), listed[0].blob, listed[0].mounted, listed[0].pinned),
        (1, blob_id("a"), true, false)
    );
    assert!(listed[0].bytes > 0 && listed[0].last_used > 0);
}

#[test]
fn work_in_progress_does_not_keep_a_blob_and_what_it_writes_is_not_seen_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
    let late = open_in(&cache);
    assert_eq!(cache.remove(&[blob_id("a")]).unwrap().removed, [blob_id("a")]);
    let next = open_in(&cache);
    assert_ne!(late.generation(), next.generation());
    let stored = late.store(ChunkIndex(0), &chunk(0, 0), &[1; 16]);
    assert!(matches!(stored, Err(StoreError::Outdated)), "{stored:?}");
    assert_eq!(next.state(ChunkIndex(0)), ChunkState::Missing);
    assert_eq!(open_again(dir.path(), cache).state(ChunkIndex(0)), ChunkState::Missing);
}

#[test]
fn a_file_that_somebody_shortened_or_emptied_in_between_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    for length in [0, CHUNK, 100 * CHUNK] {
        let blob = open(dir.path(), FIRST_BOOT);
        store(&blob, 0, 1);
        store(&blob, 64, 1);
        drop(blob);
        let whole = std::fs::metadata(data_file(dir.path())).unwrap().len();
        let file = File::options().write(true).open(data_file(dir.path())).unwrap();
        file.set_len(length).unwrap();
        if length == 100 * CHUNK {
            // Made long again, with holes.
            file.set_len(whole).unwrap();
        }
        let blob = open(dir.path(), FIRST_BOOT);
        let expected = if length == 0 { ChunkState::Claimed } else { blob.state(ChunkIndex(0)) };
        assert_eq!(
            (blob.state(ChunkIndex(0)), blob.state(ChunkIndex(64)) == ChunkState::Ready),
            (expected, length > 64 * CHUNK)
        );
    }
}

#[test]
fn of_a_file_that_somebody_empties_while_it_is_open_no_zeros_are_read() {
    let punch = |file: &File| {
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        nix::fcntl::fallocate(file, mode, 0, CHUNK as i64).unwrap();
    };
    let empty = |file: &File| {
        let length = file.metadata().unwrap().len();
        file.set_len(0).unwrap();
        file.set_len(length).unwrap();
    };
    for (change, is_partly) in [(&punch as &dyn Fn(&File), true), (&empty, false)] {
        let dir = tempfile::tempdir().unwrap();
        let blob = open(dir.path(), FIRST_BOOT);
        let read = |index: u32| {
            let mut bytes = [0; 16];
            let ready = blob.read(ChunkIndex(index), &mut bytes, u64::from(index) * CHUNK).unwrap();
            ready.then_some(bytes)
        };
        store(&blob, 0, 1);
        store(&blob, 64, 1);
        let file = File::options().write(true).open(data_file(dir.path())).unwrap();
        for _ in 0..2 {
            assert_eq!([0, 64].map(read), [Some([1; 16]); 2]);
            change(&file);
            assert_eq!([0, 64].map(read), [None, is_partly.then_some([1; 16])]);
            store(&blob, 0, 1);
            store(&blob, 64, 1);
        }
        drop(blob);
        assert_eq!(open(dir.path(), FIRST_BOOT).state(ChunkIndex(64)), ChunkState::Ready);
    }
}

#[test]
fn bits_whose_meaning_is_lost_are_claims() {
    let dir = tempfile::tempdir().unwrap();
    let places = files::paths(dir.path(), blob_id("a"), Variant(0))[2].clone();
    // As the version before wrote it, cut off, and gone.
    for broken in [Some(vec![7; 48 * 5]), Some(b"NYDPLACE".to_vec()), None] {
        store(&open(dir.path(), FIRST_BOOT), 3, 1);
        match broken {
            Some(bytes) => std::fs::write(&places, bytes).unwrap(),
            None => std::fs::remove_file(&places).unwrap(),
        }
        let blob = open(dir.path(), FIRST_BOOT);
        assert_eq!(blob.state(ChunkIndex(3)), ChunkState::Claimed);
        drop(blob);
        assert_eq!(open(dir.path(), FIRST_BOOT).state(ChunkIndex(3)), ChunkState::Claimed);
    }
}

/// The blob as the next process finds it.
fn open_again(dir: &Path, cache: Cache) -> Arc<CachedBlob> {
    drop(cache);
    open(dir, FIRST_BOOT)
}

#[test]
fn one_directory_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
    assert!(matches!(Cache::open(dir.path(), FIRST_BOOT), Err(CacheError::Locked { .. })));
    drop(cache);
    Cache::open(dir.path(), FIRST_BOOT).unwrap();
}

#[test]
fn this_boot_has_an_id() {
    assert_ne!(BootId::current().unwrap().0, [0; 16]);
}

/// A step of the model test.
#[derive(Clone, Debug)]
enum Step {
    Store(u32, u8),
    Confirm(u32),
    Discard(u32),
    Restart,
    Reboot,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Few chunks, so that steps meet; some at the edges of words, segments and the format.
    let chunk = proptest::sample::select(&INDEXES[..]);
    let step = prop_oneof![
        4 => (chunk.clone(), any::<u8>()).prop_map(|(chunk, byte)| Step::Store(chunk, byte)),
        1 => chunk.clone().prop_map(Step::Confirm),
        1 => chunk.prop_map(Step::Discard),
        1 => Just(Step::Restart),
        1 => Just(Step::Reboot),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_cache_behaves_as_a_map_of_chunks(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let mut boot = 1;
        let mut blob = open(dir.path(), BootId([boot; 16]));
        let mut model: HashMap<u32, (ChunkState, u8)> = HashMap::new();
        for step in steps {
            match step {
                Step::Store(chunk, byte) => {
                    store(&blob, chunk, byte);
                    model.insert(chunk, (ChunkState::Ready, byte));
                }
                Step::Confirm(chunk) => {
                    if let Some((state, _)) = model.get_mut(&chunk) {
                        assert!(blob.confirm(ChunkIndex(chunk), &super::tests::chunk(chunk, 0)));
                        *state = ChunkState::Ready;
                    }
                }
                Step::Discard(chunk) => {
                    blob.discard(ChunkIndex(chunk));
                    model.remove(&chunk);
                }
                Step::Restart | Step::Reboot => {
                    if matches!(step, Step::Reboot) {
                        boot += 1;
                        model.values_mut().for_each(|(state, _)| *state = ChunkState::Claimed);
                    }
                    drop(blob);
                    blob = open(dir.path(), BootId([boot; 16]));
                }
            }
            for chunk in (0..5).chain([62, 63, 64, 65_535, 65_536, 65_537, CHUNK_LIMIT - 1]) {
                let expected = model.get(&chunk).map_or(ChunkState::Missing, |(state, _)| *state);
                prop_assert_eq!(blob.state(ChunkIndex(chunk)), expected);
            }
            for (&chunk, (_, byte)) in &model {
                let content = blob.claimed(&super::tests::chunk(chunk, 0)).unwrap();
                prop_assert_eq!(content, [*byte; 16]);
            }
        }
    }
}

/// Images of one blob, three honest ones that use different parts of it and hostile ones, and what becomes of each chunk.
mod images {
    use super::*;

    /// Chunks of the honest blob: index and content.
    const HONEST: [(u32, u8); 6] = [(0, 10), (1, 11), (2, 12), (3, 13), (4, 14), (63, 15)];

    pub(super) fn image(number: usize) -> Vec<Said> {
        let mut all = said(&HONEST);
        match number {
            // Honest: the base, an image on it that replaced files, and another one.
            0 => {}
            1 => all.retain(|(index, _)| ![1, 3].contains(&index.0)),
            2 => all.retain(|(index, _)| [1, 2, 63].contains(&index.0)),
            // Other content under an index.
            3 => all[2].1.digest = Digest([99; 32]),
            // Wrong stored places.
            4 => all.iter_mut().for_each(|(_, chunk)| chunk.compressed_offset += 7),
            // Over the places of others, under an index that nobody has.
            5 => {
                let over = Chunk { uncompressed_offset: CHUNK + 8, ..chunk(2, 98) };
                all = vec![(ChunkIndex(50), over)];
            }
            // Two chunks, each at the other's place.
            _ => {
                let place = all[1].1.uncompressed_offset;
                all[1].1.uncompressed_offset = all[2].1.uncompressed_offset;
                all[2].1.uncompressed_offset = place;
            }
        }
        all
    }

    pub(super) const IMAGES: usize = 7;

    #[derive(Clone, Debug)]
    pub(super) enum Step {
        Mount(usize),
        Unmount(usize),
        /// A mount reads a chunk: what it does not find ready, or claimed and right, is fetched.
        Read(usize, usize),
        /// A fetch that a mount began ends when the mount may be gone.
        Late(usize, usize),
        Restart,
        Remove,
    }

    pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
        let any = 0..10usize;
        let step = prop_oneof![
            4 => (0..IMAGES).prop_map(Step::Mount),
            2 => any.clone().prop_map(Step::Unmount),
            8 => (any.clone(), any.clone()).prop_map(|(mount, chunk)| Step::Read(mount, chunk)),
            2 => (any.clone(), any).prop_map(|(image, chunk)| Step::Late(image, chunk)),
            1 => Just(Step::Restart),
            1 => Just(Step::Remove),
        ];
        proptest::collection::vec(step, 1..60)
    }

    /// The content that a digest stands for.
    pub(super) fn content(chunk: &Chunk) -> Vec<u8> {
        vec![chunk.digest.0[0]; chunk.uncompressed_size as usize]
    }

    /// Reads as the front does; whatever is read has to be what the image says.
    pub(super) fn read(lease: &Lease, (index, chunk): &Said) {
        let blob = lease.blob();
        let described = blob.describe(*index).expect("a mounted image's chunks are described");
        assert_eq!(described.chunk, *chunk, "as the image describes them");
        match blob.state(*index) {
            ChunkState::Ready => {}
            ChunkState::Claimed if blob.claimed(chunk).unwrap() == content(chunk) => {
                assert!(blob.confirm(*index, chunk))
            }
            _ => blob.store(*index, chunk, &content(chunk)).unwrap(),
        }
        let mut bytes = vec![0; chunk.uncompressed_size as usize];
        assert!(blob.read(*index, &mut bytes, chunk.uncompressed_offset).unwrap());
        assert_eq!(bytes, content(chunk));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn every_mounted_image_reads_its_own_chunks_whatever_else_is_or_was_mounted(steps in steps()) {
            let dir = tempfile::tempdir().unwrap();
            let mut cache = Some(Cache::open(dir.path(), FIRST_BOOT).unwrap());
            let mut mounted: Vec<(usize, Lease)> = Vec::new();
            let mut late: Vec<Arc<CachedBlob>> = Vec::new();
            for step in steps {
                let open = cache.as_ref().unwrap();
                match step {
                    Step::Mount(number) => {
                        // None is refused, however hostile others are.
                        let lease = open.blob(blob_id("a"), &coding(), 70 * CHUNK, &image(number)).unwrap();
                        late.push(Arc::clone(lease.blob()));
                        mounted.push((number, lease));
                    }
                    Step::Unmount(which) if !mounted.is_empty() => {
                        mounted.remove(which % mounted.len());
                    }
                    Step::Read(which, chunk) if !mounted.is_empty() => {
                        let (number, lease) = &mounted[which % mounted.len()];
                        let said = image(*number);
                        read(lease, &said[chunk % said.len()]);
                    }
                    Step::Late(which, chunk) if !late.is_empty() => {
                        let blob = &late[which % late.len()];
                        let said = image(which % IMAGES);
                        let (index, chunk) = &said[chunk % said.len()];
                        // Taken, or refused since it is described otherwise: never wrong for whoever reads.
                        let _ = blob.store(*index, chunk, &content(chunk));
                    }
                    Step::Restart => {
                        mounted.clear();
                        late.clear();
                        drop(cache.take());
                        cache = Some(Cache::open(dir.path(), FIRST_BOOT).unwrap());
                    }
                    Step::Remove => drop(open.remove(&[blob_id("a")]).unwrap()),
                    _ => {}
                }
                // What is said to be ready is right, for every mount, at any time.
                for (number, lease) in &mounted {
                    for (index, chunk) in image(*number) {
                        let mut bytes = vec![0; chunk.uncompressed_size as usize];
                        if lease.blob().read(index, &mut bytes, chunk.uncompressed_offset).unwrap() {
                            prop_assert_eq!(bytes, content(&chunk), "image {} chunk {}", number, index.0);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn honest_images_share_one_cache_and_complete_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
        let [base, upper, other] =
            [0, 1, 2].map(|number| cache.blob(blob_id("a"), &coding(), 70 * CHUNK, &image(number)).unwrap());
        assert!([&upper, &other].iter().all(|lease| Arc::ptr_eq(lease.blob(), base.blob())));
        drop((base, other));
        assert!(upper.blob().describe(ChunkIndex(1)).is_none(), "nobody says anything of it any longer");
        assert!(upper.blob().describe(ChunkIndex(2)).is_some());
    }

    #[test]
    fn an_image_that_contradicts_others_has_a_cache_apart_which_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
        let lease = |number| cache.blob(blob_id("a"), &coding(), 70 * CHUNK, &image(number)).unwrap();
        let (honest, hostile) = (lease(0), lease(3));
        read(&honest, &image(0)[2]);
        read(&hostile, &image(3)[2]);
        assert!(!Arc::ptr_eq(honest.blob(), hostile.blob()));
        let files = || std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files(), 7, "three of each, and the lock");
        drop(hostile);
        assert_eq!(files(), 4);
        assert!(honest.blob().is_ready(ChunkIndex(2)));
    }

    #[test]
    fn what_is_cached_apart_is_verified_too() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
        let lease = |number| cache.blob(blob_id("a"), &coding(), 70 * CHUNK, &image(number)).unwrap();
        let (honest, hostile) = (lease(0), lease(3));
        // What these store has not the digest that they say.
        read(&honest, &image(0)[2]);
        read(&hostile, &image(3)[2]);
        let all = Verified { chunks: 2, bad: vec![BadChunks { blob: blob_id("a"), chunks: 2 }] };
        assert_eq!(cache.verify(&[]).unwrap(), all);
        assert!(![honest, hostile].iter().any(|lease| lease.blob().is_ready(ChunkIndex(2))));
    }

    #[test]
    fn what_an_image_claimed_that_is_gone_gives_way_and_only_that_is_doubted() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
        let lease = |number| cache.blob(blob_id("a"), &coding(), 70 * CHUNK, &image(number)).unwrap();
        let (other, hostile) = (lease(2), lease(3));
        // The hostile one contradicts it, and is alone in its cache; the next finds nothing of it.
        read(&other, &image(2)[0]);
        read(&hostile, &image(3)[2]);
        drop(hostile);
        assert!(other.blob().is_ready(ChunkIndex(1)));
        drop(other);
        // Alone from the start, it shares the cache with what is left of honest ones, which is verified if they are back.
        let hostile = lease(3);
        read(&hostile, &image(3)[2]);
        drop(hostile);
        let honest = lease(0);
        assert_eq!([1, 2].map(|chunk| honest.blob().state(ChunkIndex(chunk))), [ChunkState::Claimed; 2]);
        read(&honest, &image(0)[1]);
        read(&honest, &image(0)[2]);
    }

    #[test]
    fn wrong_stored_places_of_an_image_that_is_gone_cost_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
        let lease = |number| cache.blob(blob_id("a"), &coding(), 70 * CHUNK, &image(number)).unwrap();
        let hostile = lease(4);
        read(&hostile, &image(4)[1]);
        drop(hostile);
        // The bytes are what matters, and they are verified.
        assert!(lease(0).blob().is_ready(ChunkIndex(1)));
    }

    #[test]
    fn an_image_that_contradicts_itself_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
        let over = Chunk { uncompressed_offset: 8, ..chunk(1, 1) };
        let said = [(ChunkIndex(0), chunk(0, 0)), (ChunkIndex(1), over)];
        let refused = cache.blob(blob_id("a"), &coding(), CHUNK, &said);
        assert!(matches!(refused, Err(CacheError::Contradiction { chunk: ChunkIndex(1), .. })));
        // One chunk under two indexes is none.
        let twice = [(ChunkIndex(0), chunk(0, 0)), (ChunkIndex(1), chunk(0, 0))];
        cache.blob(blob_id("a"), &coding(), CHUNK, &twice).unwrap();
    }
}
