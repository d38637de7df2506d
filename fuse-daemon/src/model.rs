//! Front, single flight and eviction, model-checked: each test is run in all orders of what its threads do to locks, atomics
//! and the cache's files, as far as threads are interrupted so often and no more. `LOOM_MAX_PREEMPTIONS` says how often; the
//! number of orders grows with its power.
//!
//! It is the daemon's own code, over [`crate::sync`]. There is no clock, so no deadline; the worker answers at once, or on a
//! thread of its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use loom::thread::JoinHandle;
use rafs::blob::{Blob, Chunk, ChunkIndex};
use rafs::compress::Compressor;
use rafs::digest::DigestAlgorithm;
use tempfile::TempDir;

use crate::cache::{BootId, Cache, CachedBlob, ChunkState, Lease, Said};
use crate::control::BlobId;
use crate::front::{
    BackendName, ChunkError, ChunkKey, Content, Front, FrontConfig, Order, Piece, Responses, Worker,
};
use crate::sync;

/// Interruptions, unless the environment says otherwise.
const PREEMPTIONS: usize = 1;
/// Steps of one run: more than any has.
const STEPS: usize = 20_000;

const BOOT: BootId = BootId([1; 16]);
const NEXT_BOOT: BootId = BootId([2; 16]);
/// Distance and size of chunks.
const PLACE: u64 = 8192;
const SIZE: usize = 4096;

/// Runs `test` in all orders; says in how many.
fn check(name: &str, test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.max_branches = STEPS;
    let runs = Arc::new(Mutex::new(0_u64));
    let count = Arc::clone(&runs);
    let test = Arc::new(test);
    builder.check(move || {
        *count.lock().unwrap() += 1;
        let test = Arc::clone(&test);
        spawn(move || test()).join().unwrap();
    });
    println!("{name}: {} orders", runs.lock().unwrap());
}

fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    sync::named("test".to_owned()).spawn(work).unwrap()
}

/// What chunk `index` holds.
fn content(index: u32) -> [u8; SIZE] {
    [index as u8 + 1; SIZE]
}

fn said(chunks: u32) -> Vec<Said> {
    let chunk = |index: u32| Chunk {
        digest: DigestAlgorithm::Blake3.digest(&content(index)),
        // They do not adjoin, so each is ordered alone.
        compressed_offset: u64::from(index) * PLACE,
        compressed_size: SIZE as u32,
        uncompressed_offset: u64::from(index) * PLACE,
        uncompressed_size: SIZE as u32,
        compressed: false,
        batch: None,
    };
    (0..chunks).map(|index| (ChunkIndex(index), chunk(index))).collect()
}

fn coding() -> Arc<Blob> {
    Arc::new(Blob {
        id: None,
        stored_size: 0,
        compressed_size: 0,
        uncompressed_size: 0,
        chunk_size: SIZE as u32,
        compressor: Compressor::None,
        digester: DigestAlgorithm::Blake3,
        features: 0,
        meta: None,
        toc: None,
        chunks: Vec::new(),
    })
}

fn blob_id(name: &str) -> BlobId {
    BlobId(DigestAlgorithm::Sha256.digest(name.as_bytes()))
}

fn lease(cache: &Cache, name: &str) -> Lease {
    cache.blob(blob_id(name), &coding(), 4 * PLACE, &said(4)).unwrap()
}

fn store(blob: &CachedBlob, index: u32) {
    let described = blob.describe(ChunkIndex(index)).unwrap();
    // Refused where it does not fit any more.
    let _ = blob.store(ChunkIndex(index), &described.chunk, &content(index));
}

/// How the worker answers.
#[derive(Clone, Copy, PartialEq)]
enum Answers {
    /// On a thread of its own the first time.
    Apart,
    /// Before it has taken the order.
    AtOnce,
    /// That it has nothing.
    Never,
}

/// A worker, which notes what is ordered. Its locks are not steps of the model.
struct Script {
    answers: Answers,
    front: Mutex<Weak<Front>>,
    orders: Mutex<Vec<ChunkKey>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Worker for Script {
    fn fetch(&self, orders: Vec<Order>) {
        let keys: Vec<ChunkKey> = orders.iter().flat_map(Order::keys).collect();
        let is_first = {
            let mut known = self.orders.lock().unwrap();
            known.extend(&keys);
            known.len() == keys.len()
        };
        let front = Weak::clone(&self.front.lock().unwrap());
        let answers = self.answers;
        let answer = move || {
            let Some(front) = front.upgrade() else { return };
            for key in keys {
                answer(&front, key, answers != Answers::Never);
            }
        };
        if answers == Answers::Apart && is_first {
            let thread = spawn(answer);
            self.threads.lock().unwrap().push(thread);
        } else {
            answer();
        }
    }

    fn hurry(&self, _: ChunkKey) {}
}

fn answer(front: &Front, key: ChunkKey, has_it: bool) {
    let (from, bytes) = (BackendName::from("here"), content(key.chunk.0));
    let outcome = if has_it {
        Ok(Content { bytes: &bytes, from: &from })
    } else {
        Err(ChunkError::Fetch("the registry is gone".to_owned()))
    };
    front.finished(key, outcome);
}

struct Bench {
    dir: TempDir,
    cache: Cache,
    worker: Arc<Script>,
    front: Arc<Front>,
}

impl Bench {
    fn new(answers: Answers, quota: Option<u64>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::over(dir, BOOT, answers, quota)
    }

    fn over(dir: TempDir, boot: BootId, answers: Answers, quota: Option<u64>) -> Self {
        let cache = Cache::open_with_quota(dir.path(), boot, quota).unwrap();
        let (front, orders, threads) = (Mutex::default(), Mutex::default(), Mutex::default());
        let worker = Arc::new(Script { answers, front, orders, threads });
        let config = FrontConfig {
            deadline: Duration::from_secs(3600),
            request_bytes: 1,
            ahead_bytes: 0,
            threads: 1,
            failure_memory: Duration::ZERO,
        };
        let front = Front::new(Arc::clone(&worker) as Arc<dyn Worker>, config).unwrap();
        *worker.front.lock().unwrap() = Arc::downgrade(&front);
        Self { dir, cache, worker, front }
    }

    fn data_of(&self, name: &str) -> File {
        let path = self.dir.path().join(format!("{}.blob.data", blob_id(name).0));
        File::options().write(true).open(path).unwrap()
    }

    /// All threads that the worker began, and those of the front, have come to their end.
    fn end(self) -> Vec<ChunkKey> {
        let threads = std::mem::take(&mut *self.worker.threads.lock().unwrap());
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop(self.front);
        self.worker.orders.lock().unwrap().clone()
    }
}

/// What a read came to, once it has.
type ReadOutcome = Option<Result<Vec<u8>, String>>;

/// What a reader is told, for whoever waits for it.
#[derive(Clone)]
struct AwaitedChunk(Arc<(sync::Mutex<ReadOutcome>, sync::Condvar)>);

/// Begins to read a chunk.
fn read(front: &Front, blob: &Arc<CachedBlob>, chunk: u32) -> AwaitedChunk {
    let answer = AwaitedChunk(Arc::new((sync::Mutex::new(None), sync::Condvar::new())));
    let at = u64::from(chunk) * PLACE;
    let piece = Piece::Chunk { blob: Arc::clone(blob), chunk: ChunkIndex(chunk), offset: at, len: SIZE };
    let place = answer.clone();
    front.read(vec![piece], move |result| {
        let result = result.map(<[u8]>::to_vec).map_err(|error| error.to_string());
        let before = place.0.0.lock().unwrap().replace(result);
        assert!(before.is_none(), "answered twice");
        place.0.1.notify_all();
    });
    answer
}

/// Waits for the answer, which is what the chunk holds, or why it does not come. One that never comes is a deadlock.
fn refused(answer: &AwaitedChunk, chunk: u32) -> Option<String> {
    let AwaitedChunk(shared) = answer;
    let mut told = shared.0.lock().unwrap();
    while told.is_none() {
        told = shared.1.wait(told).unwrap();
    }
    match told.as_ref() {
        Some(Ok(bytes)) => assert!(*bytes == content(chunk), "chunk {chunk} begins with {}", bytes[0]),
        Some(Err(error)) => return Some(error.clone()),
        None => unreachable!("waited for"),
    }
    None
}

/// Waits for the answer, which is what the chunk holds.
fn assert_right(answer: &AwaitedChunk, chunk: u32) {
    assert_eq!(refused(answer, chunk), None, "chunk {chunk}");
}

#[test]
fn readers_of_a_chunk_share_one_flight_and_all_of_them_are_answered() {
    check("single flight", || {
        let bench = Bench::new(Answers::Apart, None);
        let lease = lease(&bench.cache, "a");
        // Words of the map that are made while others look are beyond loom, which does not see a `OnceLock`.
        store(lease.blob(), 3);
        let other = {
            let (front, blob) = (Arc::clone(&bench.front), Arc::clone(lease.blob()));
            spawn(move || read(&front, &blob, 0))
        };
        let mine = read(&bench.front, lease.blob(), 0);
        let other = other.join().unwrap();
        assert_right(&mine, 0);
        assert_right(&other, 0);
        let orders = bench.end();
        assert_eq!(orders.len(), 1, "{orders:?}");
    });
}

#[test]
fn nothing_is_read_of_what_somebody_took_away_between_the_two_looks() {
    check("two looks", || {
        let bench = Bench::new(Answers::AtOnce, None);
        let lease = lease(&bench.cache, "a");
        store(lease.blob(), 0);
        let data = bench.data_of("a");
        let blob = Arc::clone(lease.blob());
        // Emptied, and made long again by the next chunk that is stored.
        let other = spawn(move || {
            data.set_len(0).unwrap();
            store(&blob, 1);
        });
        let answer = read(&bench.front, lease.blob(), 0);
        other.join().unwrap();
        assert_right(&answer, 0);
        bench.end();
    });
}

#[test]
fn what_makes_room_takes_nothing_that_is_leased() {
    // One chunk, beside what says what chunks are.
    const QUOTA: u64 = 24 << 10;
    check("eviction", || {
        let bench = Bench::new(Answers::AtOnce, Some(QUOTA));
        let (old, new) = (lease(&bench.cache, "old"), lease(&bench.cache, "new"));
        store(old.blob(), 0);
        drop(old);
        let other = spawn(move || {
            store(new.blob(), 0);
            store(new.blob(), 1);
            new
        });
        let again = lease(&bench.cache, "old");
        let answer = read(&bench.front, again.blob(), 0);
        let new = other.join().unwrap();
        let held = bench.cache.held().unwrap();
        assert!(held.contains(&blob_id("old")) && held.contains(&blob_id("new")), "only {held:?}");
        assert_right(&answer, 0);
        drop((again, new));
        bench.end();
    });
}

#[test]
fn a_flight_of_files_that_were_removed_reaches_nobody_who_reads_the_next() {
    check("generations", || {
        let bench = Bench::new(Answers::Apart, None);
        let first = lease(&bench.cache, "a");
        let old = read(&bench.front, first.blob(), 0);
        // Removed and pulled again, while the worker answers.
        drop(first);
        bench.cache.remove(&[blob_id("a")]).unwrap();
        let second = lease(&bench.cache, "a");
        let new = read(&bench.front, second.blob(), 0);
        let blob = Arc::clone(second.blob());
        // Nothing is stored to files that were removed: whoever still reads them is refused, unless it came before.
        _ = refused(&old, 0);
        assert_right(&new, 0);
        bench.end();
        let mut found = [0; SIZE];
        assert!(blob.read(ChunkIndex(0), &mut found, 0).unwrap() && found == content(0));
    });
}

#[test]
fn what_the_cache_claims_needs_no_registry_whoever_verifies_it() {
    check("claims", || {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), BOOT).unwrap();
        store(lease(&cache, "a").blob(), 0);
        drop(cache);
        let bench = Bench::over(dir, NEXT_BOOT, Answers::Never, None);
        let lease = lease(&bench.cache, "a");
        assert_eq!(lease.blob().state(ChunkIndex(0)), ChunkState::Claimed);
        // As an administrator does.
        let cache = bench.cache.clone();
        let other = spawn(move || cache.verify(&[]).unwrap());
        let answer = read(&bench.front, lease.blob(), 0);
        let verified = other.join().unwrap();
        assert!(verified.bad.is_empty(), "{verified:?}");
        assert_right(&answer, 0);
        bench.end();
    });
}
