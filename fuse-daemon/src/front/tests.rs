use std::sync::mpsc;
use std::time::Instant;

use rafs::digest::DigestAlgorithm;

use super::*;
use crate::cache::{BootId, Cache, CachedBlob};

const SOON: Duration = Duration::from_secs(20);

/// A worker that only notes what it is asked for; the test does its work.
#[derive(Default)]
struct Script {
    asked: Mutex<Vec<ChunkKey>>,
}

impl Worker for Script {
    fn request(&self, chunks: &[ChunkKey]) {
        self.asked.lock().unwrap().extend_from_slice(chunks);
    }
}

impl Script {
    fn asked(&self) -> Vec<u32> {
        self.asked.lock().unwrap().iter().map(|key| key.chunk.0).collect()
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    blob: Arc<CachedBlob>,
    worker: Arc<Script>,
    front: Arc<Front>,
}

type Outcome = mpsc::Receiver<Result<Vec<u8>, String>>;

impl Bench {
    fn new(deadline: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let id = BlobId(DigestAlgorithm::Sha256.digest(b"blob"));
        let blob = Cache::open(dir.path(), BootId([1; 16])).unwrap().blob(id, 1 << 20, &[]).unwrap().blob();
        let worker = Arc::new(Script::default());
        let front = Arc::new(Front::new(worker.clone(), deadline));
        Self { _dir: dir, blob, worker, front }
    }

    fn key(&self, chunk: u32) -> ChunkKey {
        ChunkKey { blob: self.blob.id(), chunk: ChunkIndex(chunk) }
    }

    /// Reads four bytes at the start of each chunk.
    fn read(&self, chunks: &[u32]) -> Outcome {
        let piece = |&chunk: &u32| Piece::Chunk {
            blob: self.blob.clone(),
            chunk: ChunkIndex(chunk),
            offset: u64::from(chunk) * 4096,
            len: 4,
        };
        let (sender, outcome) = mpsc::channel();
        self.front.read(chunks.iter().map(piece).collect(), move |result| {
            sender.send(result.map(<[u8]>::to_vec).map_err(|error| error.to_string())).unwrap();
        });
        outcome
    }

    fn store(&self, chunk: u32, bytes: &[u8]) {
        self.blob.store(ChunkIndex(chunk), u64::from(chunk) * 4096, bytes).unwrap();
    }

    fn deliver(&self, chunk: u32, bytes: &[u8]) {
        self.store(chunk, bytes);
        self.front.finished(self.key(chunk), Ok(()));
    }
}

fn answered(outcome: &Outcome) -> Result<Vec<u8>, String> {
    outcome.recv_timeout(SOON).expect("the read is answered")
}

fn waits(outcome: &Outcome) -> bool {
    outcome.try_recv() == Err(mpsc::TryRecvError::Empty)
}

#[test]
fn ready_chunks_are_read_without_the_worker() {
    let bench = Bench::new(SOON);
    bench.store(1, b"one.");
    assert_eq!(bench.read(&[1]).try_recv().unwrap().unwrap(), b"one.");
    assert!(bench.worker.asked().is_empty());
}

#[test]
fn a_read_waits_for_all_its_chunks() {
    let bench = Bench::new(SOON);
    bench.store(2, b"two.");
    let read = bench.read(&[1, 2, 3]);
    assert_eq!(bench.worker.asked(), [1, 3]);
    bench.deliver(3, b"thre");
    assert!(waits(&read));
    bench.deliver(1, b"one.");
    assert_eq!(answered(&read).unwrap(), b"one.two.thre");
}

#[test]
fn concurrent_readers_of_a_chunk_cause_one_request() {
    let bench = Bench::new(SOON);
    let reads: Vec<Outcome> = (0..10).map(|_| bench.read(&[1, 1, 2])).collect();
    assert_eq!(bench.worker.asked(), [1, 2]);
    bench.deliver(1, b"one.");
    bench.deliver(2, b"two.");
    for read in reads {
        assert_eq!(answered(&read).unwrap(), b"one.one.two.");
    }
}

#[test]
fn a_failed_chunk_fails_its_readers_and_no_others() {
    let bench = Bench::new(SOON);
    let (bad, good) = (bench.read(&[1, 2]), bench.read(&[2]));
    bench.front.finished(bench.key(1), Err(ChunkError::Corrupt("digest".to_owned())));
    assert!(answered(&bad).unwrap_err().contains("chunk 1"));
    bench.deliver(2, b"two.");
    assert_eq!(answered(&good).unwrap(), b"two.");
}

#[test]
fn a_failed_chunk_is_asked_for_again_by_the_next_reader() {
    let bench = Bench::new(SOON);
    let first = bench.read(&[1]);
    bench.front.finished(bench.key(1), Err(ChunkError::Fetch("down".to_owned())));
    assert!(answered(&first).is_err());
    let second = bench.read(&[1]);
    assert_eq!(bench.worker.asked(), [1, 1]);
    bench.deliver(1, b"one.");
    assert_eq!(answered(&second).unwrap(), b"one.");
}

#[test]
fn a_silent_worker_costs_a_reader_no_more_than_the_deadline() {
    let bench = Bench::new(Duration::from_millis(50));
    let started = Instant::now();
    let read = bench.read(&[1]);
    assert!(answered(&read).unwrap_err().contains("did not arrive within 50ms"));
    assert!(started.elapsed() >= Duration::from_millis(50));
    // What comes late serves those who come later.
    bench.deliver(1, b"one.");
    assert_eq!(answered(&bench.read(&[1])).unwrap(), b"one.");
    // The thread that ended the first read has gone or not: a second one ends too.
    assert!(answered(&bench.read(&[2])).is_err());
}

#[test]
fn a_new_worker_is_asked_for_what_the_old_one_left() {
    let bench = Bench::new(SOON);
    let read = bench.read(&[1, 2]);
    bench.deliver(1, b"one.");
    let successor = Arc::new(Script::default());
    bench.front.replace_worker(successor.clone());
    assert_eq!(successor.asked(), [2]);
    bench.deliver(2, b"two.");
    assert_eq!(answered(&read).unwrap(), b"one.two.");
}

#[test]
fn holes_are_zeros() {
    let bench = Bench::new(SOON);
    let (sender, outcome) = mpsc::channel();
    bench.front.read(vec![Piece::Zeros(3)], move |result| sender.send(result.unwrap().to_vec()).unwrap());
    assert_eq!(outcome.try_recv().unwrap(), [0; 3]);
}

/// Answers within the call, as a worker does that finds the chunk just arrived.
struct Instantly {
    blob: Arc<CachedBlob>,
    front: Mutex<std::sync::Weak<Front>>,
}

impl Worker for Instantly {
    fn request(&self, chunks: &[ChunkKey]) {
        let front = self.front.lock().unwrap().upgrade().unwrap();
        for key in chunks {
            self.blob.store(key.chunk, u64::from(key.chunk.0) * 4096, b"now.").unwrap();
            front.finished(*key, Ok(()));
        }
    }
}

#[test]
fn many_threads_that_race_for_chunks_all_get_them() {
    let bench = Bench::new(SOON);
    let worker = Arc::new(Instantly { blob: bench.blob.clone(), front: Mutex::default() });
    bench.front.replace_worker(worker.clone());
    *worker.front.lock().unwrap() = Arc::downgrade(&bench.front);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let bench = &bench;
            scope.spawn(move || {
                for chunk in 0..200 {
                    let read = bench.read(&[chunk, (chunk + thread) % 200]);
                    assert_eq!(answered(&read).unwrap(), b"now.now.");
                }
            });
        }
    });
}
