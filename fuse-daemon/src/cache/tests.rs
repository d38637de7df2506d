use std::collections::HashMap;

use proptest::prelude::*;
use rafs::blob::ChunkIndex;
use rafs::digest::DigestAlgorithm;

use super::*;

const FIRST_BOOT: BootId = BootId([1; 16]);
const SECOND_BOOT: BootId = BootId([2; 16]);
const CHUNK: u64 = 4096;

fn blob_id(name: &str) -> BlobId {
    BlobId(DigestAlgorithm::Sha256.digest(name.as_bytes()))
}

fn open(dir: &Path, boot: BootId) -> Arc<CachedBlob> {
    Cache::open(dir, boot).unwrap().blob(blob_id("a"), 100 * CHUNK, &[]).unwrap().blob()
}

#[test]
fn a_stored_chunk_is_ready_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let blob = open(dir.path(), FIRST_BOOT);
    assert_eq!(blob.state(ChunkIndex(70)), ChunkState::Missing);
    blob.store(ChunkIndex(70), 7 * CHUNK, b"chunk").unwrap();
    let mut buffer = [0; 4];
    blob.read(&mut buffer, 7 * CHUNK + 1).unwrap();
    assert_eq!((&buffer, blob.state(ChunkIndex(70))), (b"hunk", ChunkState::Ready));
    assert_eq!(blob.state(ChunkIndex(71)), ChunkState::Missing);
}

#[test]
fn within_a_boot_chunks_stay_ready_without_a_clean_end() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), FIRST_BOOT).store(ChunkIndex(3), 0, b"x").unwrap();
    assert_eq!(open(dir.path(), FIRST_BOOT).state(ChunkIndex(3)), ChunkState::Ready);
}

#[test]
fn chunks_of_another_boot_are_claims_until_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let blob = open(dir.path(), FIRST_BOOT);
    blob.store(ChunkIndex(3), 0, b"x").unwrap();
    blob.store(ChunkIndex(4), CHUNK, b"y").unwrap();
    drop(blob);
    let blob = open(dir.path(), SECOND_BOOT);
    assert_eq!(blob.state(ChunkIndex(3)), ChunkState::Claimed);
    blob.confirm(ChunkIndex(3));
    blob.discard(ChunkIndex(4));
    assert_eq!(blob.state(ChunkIndex(3)), ChunkState::Ready);
    drop(blob);
    let blob = open(dir.path(), SECOND_BOOT);
    assert_eq!([3, 4].map(|chunk| blob.state(ChunkIndex(chunk))), [ChunkState::Ready, ChunkState::Missing]);
}

#[test]
fn a_map_whose_data_is_gone_promises_nothing() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), FIRST_BOOT).store(ChunkIndex(3), 0, b"x").unwrap();
    std::fs::remove_file(&blob::paths(dir.path(), blob_id("a"))[0]).unwrap();
    assert_eq!(open(dir.path(), FIRST_BOOT).state(ChunkIndex(3)), ChunkState::Missing);
}

#[test]
fn a_file_that_is_no_map_becomes_one() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), FIRST_BOOT).store(ChunkIndex(3), 0, b"x").unwrap();
    std::fs::write(&blob::paths(dir.path(), blob_id("a"))[1], vec![0xff; 5000]).unwrap();
    let blob = open(dir.path(), FIRST_BOOT);
    assert_eq!(blob.state(ChunkIndex(3)), ChunkState::Missing);
    blob.store(ChunkIndex(3), 0, b"x").unwrap();
    drop(blob);
    assert_eq!(open(dir.path(), FIRST_BOOT).state(ChunkIndex(3)), ChunkState::Ready);
}

#[test]
fn usage_counts_what_is_on_disk_not_the_length() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
    assert_eq!(cache.usage(blob_id("a")), 0);
    let blob = cache.blob(blob_id("a"), 1 << 30, &[]).unwrap().blob();
    blob.store(ChunkIndex(0), 0, &[7; 65536]).unwrap();
    let usage = cache.usage(blob_id("a"));
    assert!((65536..1 << 20).contains(&usage), "{usage}");
}

#[test]
fn a_blob_in_use_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
    let (used, unused, unknown) = (blob_id("used"), blob_id("unused"), blob_id("unknown"));
    let held = cache.blob(used, CHUNK, &[]).unwrap();
    drop(cache.blob(unused, CHUNK, &[]).unwrap());
    let removed = cache.remove(&[used, unused, unknown]).unwrap();
    assert_eq!(removed, Removed { removed: vec![unused], in_use: vec![used] });
    drop(held);
    assert_eq!(cache.remove(&[used]).unwrap().removed, [used]);
    assert_eq!(cache.usage(used), 0);
}

#[test]
fn work_in_progress_does_not_keep_a_blob_and_what_it_writes_is_not_seen_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
    let late = cache.blob(blob_id("a"), CHUNK, &[]).unwrap().blob();
    assert_eq!(cache.remove(&[blob_id("a")]).unwrap().removed, [blob_id("a")]);
    let next = cache.blob(blob_id("a"), CHUNK, &[]).unwrap().blob();
    late.store(ChunkIndex(0), 0, b"late").unwrap();
    assert_eq!(next.state(ChunkIndex(0)), ChunkState::Missing);
    assert_eq!(open_again(dir.path(), cache).state(ChunkIndex(0)), ChunkState::Missing);
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
    let chunk = prop_oneof![0..4u32, Just(63), Just(64), Just(65_535), Just(65_536), Just(CHUNK_LIMIT - 1)];
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
                    blob.store(ChunkIndex(chunk), u64::from(chunk) * CHUNK, &[byte; 16]).unwrap();
                    model.insert(chunk, (ChunkState::Ready, byte));
                }
                Step::Confirm(chunk) => {
                    if let Some((state, _)) = model.get_mut(&chunk) {
                        blob.confirm(ChunkIndex(chunk));
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
                let mut buffer = [0; 16];
                blob.read(&mut buffer, u64::from(chunk) * CHUNK).unwrap();
                prop_assert_eq!(buffer, [*byte; 16]);
            }
        }
    }
}
