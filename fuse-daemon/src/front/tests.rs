use std::sync::mpsc;

use rafs::blob::{Blob, Chunk, ChunkIndex};
use rafs::compress::Compressor;
use rafs::digest::DigestAlgorithm;

use super::*;
use crate::cache::{BootId, Cache, CachedBlob, Lease, Said};

mod ahead;
mod broken;
mod late;

const SOON: Duration = Duration::from_secs(20);
const PLACE: u64 = 4096;

/// A worker that only notes what is ordered; the test does its work.
#[derive(Default)]
struct Script {
    orders: Mutex<Vec<Order>>,
    hurried: Mutex<Vec<u32>>,
}

impl Worker for Script {
    fn fetch(&self, orders: Vec<Order>) {
        self.orders.lock().unwrap().extend(orders);
    }

    fn hurry(&self, chunk: ChunkKey) {
        self.hurried.lock().unwrap().push(chunk.chunk.0);
    }
}

impl Script {
    fn ordered(&self) -> Vec<u32> {
        self.orders.lock().unwrap().iter().flat_map(Order::keys).map(|key| key.chunk.0).collect()
    }

    fn last(&self) -> Order {
        self.orders.lock().unwrap().last().expect("an order").clone()
    }
}

fn blob_id() -> BlobId {
    BlobId(DigestAlgorithm::Sha256.digest(b"blob"))
}

fn coding() -> Arc<Blob> {
    Arc::new(Blob::coding(4096, Compressor::None, DigestAlgorithm::Blake3))
}

/// What chunk `index` holds.
fn content(index: u32) -> [u8; 4] {
    (index + 1000).to_le_bytes()
}

/// Chunks whose stored bytes are `distance` apart: with 4, they adjoin.
fn said(distance: u64) -> Vec<Said> {
    let chunk = |index: u32| Chunk {
        digest: DigestAlgorithm::Blake3.digest(&content(index)),
        compressed_offset: u64::from(index) * distance,
        compressed_size: 4,
        uncompressed_offset: u64::from(index) * PLACE,
        uncompressed_size: 4,
        compressed: false,
        batch: None,
    };
    (0..210).map(|index| (ChunkIndex(index), chunk(index))).collect()
}

struct Bench {
    dir: tempfile::TempDir,
    cache: Cache,
    lease: Option<Lease>,
    worker: Arc<Script>,
    front: Arc<Front>,
}

fn config(deadline: Duration, failure_memory: Duration) -> FrontConfig {
    // What is read ahead has tests of its own.
    FrontConfig { deadline, request_bytes: 12, ahead_bytes: 0, threads: 1, failure_memory }
}

type Outcome = mpsc::Receiver<Result<Vec<u8>, String>>;

impl Bench {
    fn new(deadline: Duration) -> Self {
        Self::with(deadline, Duration::ZERO, 100)
    }

    fn with(deadline: Duration, failure_memory: Duration, distance: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), BootId([1; 16])).unwrap();
        let lease = cache.blob(blob_id(), &coding(), 1 << 20, &said(distance)).unwrap();
        let worker = Arc::new(Script::default());
        let front = Front::new(worker.clone(), config(deadline, failure_memory)).unwrap();
        Self { dir, cache, lease: Some(lease), worker, front }
    }

    fn blob(&self) -> Arc<CachedBlob> {
        Arc::clone(self.lease.as_ref().unwrap().blob())
    }

    fn key(&self, chunk: u32) -> ChunkKey {
        Want { blob: self.blob(), chunk: ChunkIndex(chunk) }.key()
    }

    /// Reads all of each chunk.
    fn read(&self, chunks: &[u32]) -> Outcome {
        let piece = |&chunk: &u32| Piece::Chunk {
            blob: self.blob(),
            chunk: ChunkIndex(chunk),
            offset: u64::from(chunk) * PLACE,
            len: 4,
        };
        let (sender, outcome) = mpsc::channel();
        self.front.read(chunks.iter().map(piece).collect(), move |result| {
            sender.send(result.map(<[u8]>::to_vec).map_err(|error| error.to_string())).unwrap();
        });
        outcome
    }

    fn store(&self, chunk: u32) {
        let described = self.blob().describe(ChunkIndex(chunk)).unwrap();
        self.blob().store(ChunkIndex(chunk), &described.chunk, &content(chunk)).unwrap();
    }

    fn deliver(&self, chunk: u32) {
        self.answer(chunk, Ok(&content(chunk)));
    }

    fn answer(&self, chunk: u32, outcome: Result<&[u8], ChunkError>) {
        answer(&self.front, self.key(chunk), outcome);
    }
}

fn answer(front: &Front, key: ChunkKey, outcome: Result<&[u8], ChunkError>) {
    let from = BackendName::from("here");
    front.finished(key, outcome.map(|bytes| Content { bytes, from: &from }));
}

fn contents(chunks: &[u32]) -> Vec<u8> {
    chunks.iter().flat_map(|chunk| content(*chunk)).collect()
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
    bench.store(1);
    assert_eq!(bench.read(&[1]).try_recv().unwrap().unwrap(), content(1));
    assert!(bench.worker.ordered().is_empty());
}

#[test]
fn a_read_waits_for_all_its_chunks() {
    let bench = Bench::new(SOON);
    bench.store(2);
    let read = bench.read(&[1, 2, 3]);
    assert_eq!(bench.worker.ordered(), [1, 3]);
    bench.deliver(3);
    assert!(waits(&read));
    bench.deliver(1);
    assert_eq!(answered(&read).unwrap(), contents(&[1, 2, 3]));
}

#[test]
fn concurrent_readers_of_a_chunk_cause_one_order() {
    let bench = Bench::new(SOON);
    let reads: Vec<Outcome> = (0..10).map(|_| bench.read(&[1, 1, 2])).collect();
    assert_eq!(bench.worker.ordered(), [1, 2]);
    bench.deliver(1);
    bench.deliver(2);
    for read in reads {
        assert_eq!(answered(&read).unwrap(), contents(&[1, 1, 2]));
    }
}

#[test]
fn chunks_can_be_brought_without_being_read() {
    let bench = Bench::new(SOON);
    let (sender, outcome) = mpsc::channel();
    let wanted = [3, 1, 3].map(|chunk| Want { blob: bench.blob(), chunk: ChunkIndex(chunk) });
    bench.front.ensure(wanted.to_vec(), move |result| sender.send(result.is_ok()).unwrap());
    assert_eq!(bench.worker.ordered(), [1, 3]);
    bench.deliver(1);
    bench.deliver(3);
    assert!(outcome.recv_timeout(SOON).unwrap());
    assert!(bench.blob().is_ready(ChunkIndex(3)));
}

impl Bench {
    /// Brings chunks that nobody reads.
    fn bring(&self, chunks: &[u32]) -> mpsc::Receiver<bool> {
        let (sender, outcome) = mpsc::channel();
        let wanted = chunks.iter().map(|chunk| Want { blob: self.blob(), chunk: ChunkIndex(*chunk) });
        self.front.ensure_idle(wanted.collect(), move |result| sender.send(result.is_ok()).unwrap());
        outcome
    }
}

#[test]
fn what_nobody_reads_is_ordered_as_such_and_hurried_by_the_first_reader() {
    let bench = Bench::new(SOON);
    let brought = bench.bring(&[1]);
    assert!(bench.worker.last().demanded.is_empty());
    let reads = [bench.read(&[1]), bench.read(&[1])];
    assert_eq!(bench.worker.ordered(), [1], "it is on its way");
    assert_eq!(*bench.worker.hurried.lock().unwrap(), [1], "once");
    bench.deliver(1);
    assert!(brought.recv_timeout(SOON).unwrap());
    for read in reads {
        assert_eq!(answered(&read).unwrap(), content(1));
    }
}

#[test]
fn what_nobody_reads_fails_at_once_and_is_no_reason_to_refuse_a_reader() {
    let bench = Bench::with(SOON, SOON, 100);
    let busy = || ChunkError::Fetch("busy with what readers wait for".to_owned());
    let brought = bench.bring(&[1]);
    bench.answer(1, Err(busy()));
    assert!(!brought.recv_timeout(SOON).unwrap());
    assert_eq!(bench.worker.ordered(), [1], "nothing is tried again for it");
    // And a failure while a reader has joined is tried again for the reader.
    let brought = bench.bring(&[1, 2, 3]);
    let read = bench.read(&[2]);
    bench.answer(2, Err(busy()));
    assert_eq!(bench.worker.last().demanded, [ChunkIndex(2)]);
    (1..=3).for_each(|chunk| bench.deliver(chunk));
    assert_eq!(answered(&read).unwrap(), content(2));
    assert!(brought.recv_timeout(SOON).unwrap());
}

#[test]
fn a_failed_chunk_fails_its_readers_and_no_others() {
    let bench = Bench::new(SOON);
    let (bad, good) = (bench.read(&[1, 2]), bench.read(&[2]));
    bench.answer(1, Err(ChunkError::Fetch("down".to_owned())));
    assert!(answered(&bad).unwrap_err().contains("chunk 1"));
    bench.deliver(2);
    assert_eq!(answered(&good).unwrap(), content(2));
}

#[test]
fn a_failed_chunk_is_ordered_again_by_the_next_reader() {
    let bench = Bench::new(SOON);
    let first = bench.read(&[1]);
    bench.answer(1, Err(ChunkError::Fetch("down".to_owned())));
    assert!(answered(&first).is_err());
    let second = bench.read(&[1]);
    assert_eq!(bench.worker.ordered(), [1, 1]);
    bench.deliver(1);
    assert_eq!(answered(&second).unwrap(), content(1));
}

#[test]
fn a_failure_is_remembered_until_somebody_else_has_the_blob() {
    let bench = Bench::with(SOON, SOON, 100);
    let first = bench.read(&[1]);
    bench.answer(1, Err(ChunkError::Fetch("down".to_owned())));
    assert!(answered(&first).is_err());
    assert!(answered(&bench.read(&[1])).is_err());
    assert_eq!(bench.worker.ordered(), [1]);
    bench.front.forget_failures(&[blob_id()]);
    let read = bench.read(&[1]);
    bench.deliver(1);
    assert_eq!(answered(&read).unwrap(), content(1));
}

#[test]
fn a_new_worker_is_asked_for_what_the_old_one_left() {
    let bench = Bench::new(SOON);
    let read = bench.read(&[1, 2]);
    bench.deliver(1);
    bench.front.order_again();
    assert_eq!(bench.worker.ordered(), [1, 2, 2]);
    bench.deliver(2);
    assert_eq!(answered(&read).unwrap(), contents(&[1, 2]));
}

#[test]
fn what_came_along_for_nobody_is_ordered_by_who_wants_it_after_the_worker_ended() {
    let bench = Bench::with(SOON, Duration::ZERO, 4);
    let _first = bench.read(&[1]);
    assert_eq!(bench.worker.ordered(), [1, 2, 3]);
    bench.front.order_again();
    assert_eq!(bench.worker.ordered(), [1, 2, 3, 1]);
    let read = bench.read(&[3]);
    assert_eq!(bench.worker.ordered()[4], 3);
    bench.deliver(3);
    assert_eq!(answered(&read).unwrap(), content(3));
}

#[test]
fn what_the_worker_lost_is_ordered_again_but_not_for_ever() {
    let bench = Bench::new(SOON);
    let read = bench.read(&[1]);
    bench.answer(1, Err(ChunkError::Lost));
    bench.deliver(1);
    assert_eq!(answered(&read).unwrap(), content(1));
    let read = bench.read(&[7]);
    while waits(&read) {
        bench.answer(7, Err(ChunkError::Lost));
    }
    assert_eq!(bench.worker.ordered(), [1, 1, 7, 7, 7, 7]);
}

#[test]
fn bytes_that_are_not_the_chunk_are_not_kept_and_others_are_asked() {
    let bench = Bench::new(SOON);
    let read = bench.read(&[1]);
    for wrong in [b"abcd".as_slice(), b"abc", b""] {
        bench.answer(1, Ok(wrong));
        assert!(waits(&read) && !bench.blob().is_ready(ChunkIndex(1)));
    }
    assert_eq!(bench.worker.last().refused.len(), 3);
    bench.answer(1, Err(ChunkError::Exhausted));
    assert!(answered(&read).unwrap_err().contains("chunk 1"));
}

#[test]
fn what_comes_along_and_cannot_be_had_does_not_fail_a_reader() {
    let bench = Bench::with(SOON, SOON, 4);
    let read = bench.read(&[1]);
    assert_eq!(bench.worker.ordered(), [1, 2, 3]);
    let down = || Err(ChunkError::Fetch("ends early".to_owned()));
    [1, 2, 3].into_iter().for_each(|chunk| bench.answer(chunk, down()));
    assert_eq!(bench.worker.ordered(), [1, 2, 3, 1], "alone");
    bench.deliver(1);
    assert_eq!(answered(&read).unwrap(), content(1));
    // Nobody waited for them, so nobody is refused.
    bench.read(&[2]);
    assert_eq!(bench.worker.ordered(), [1, 2, 3, 1, 2, 3, 4]);
}

#[test]
fn a_reader_joins_what_comes_along_and_hurries_it() {
    let bench = Bench::with(SOON, SOON, 4);
    let first = bench.read(&[1]);
    let second = bench.read(&[2]);
    assert_eq!(
        (bench.worker.ordered(), bench.worker.hurried.lock().unwrap().clone()),
        (vec![1, 2, 3], vec![2])
    );
    bench.deliver(2);
    assert_eq!(answered(&second).unwrap(), content(2));
    assert!(waits(&first));
}

#[test]
fn work_for_files_that_were_removed_reaches_nobody_who_reads_the_next_ones() {
    let mut bench = Bench::new(SOON);
    let old_key = bench.key(1);
    let _old_read = bench.read(&[1]);
    // The image is removed, and pulled again.
    bench.lease = None;
    assert_eq!(bench.cache.remove(&[blob_id()]).unwrap().removed, [blob_id()]);
    bench.lease = Some(bench.cache.blob(blob_id(), &coding(), 1 << 20, &said(100)).unwrap());
    assert_ne!(bench.key(1), old_key);
    let read = bench.read(&[1]);
    assert_eq!(bench.worker.ordered(), [1, 1]);
    answer(&bench.front, old_key, Ok(&content(1)));
    assert!(waits(&read) && !bench.blob().is_ready(ChunkIndex(1)));
    bench.deliver(1);
    assert_eq!(answered(&read).unwrap(), content(1));
}

#[test]
fn of_a_cache_file_that_somebody_shortened_no_zeros_are_read() {
    let bench = Bench::new(SOON);
    let chunks: Vec<u32> = (0..20).collect();
    chunks.iter().for_each(|chunk| bench.store(*chunk));
    let data = bench.dir.path().join(format!("{}.blob.data", blob_id().0));
    // Emptied, and made long again by a chunk that is stored before anybody reads.
    std::fs::File::options().write(true).open(&data).unwrap().set_len(0).unwrap();
    bench.store(30);
    let read = bench.read(&chunks);
    assert!(waits(&read));
    let end = Instant::now() + SOON;
    while bench.worker.ordered().len() < chunks.len() {
        assert!(Instant::now() < end, "all of it is fetched again");
        std::thread::sleep(Duration::from_millis(1));
    }
    chunks.iter().for_each(|chunk| bench.deliver(*chunk));
    assert_eq!(answered(&read).unwrap(), contents(&chunks));
    // Shortened by a part: what is left is verified, not fetched.
    std::fs::File::options().write(true).open(&data).unwrap().set_len(10 * PLACE).unwrap();
    let before = bench.worker.ordered().len();
    let read = bench.read(&[15]);
    while bench.worker.ordered().len() == before {
        assert!(Instant::now() < end, "what was cut off is fetched again");
        std::thread::sleep(Duration::from_millis(1));
    }
    bench.deliver(15);
    assert_eq!(answered(&read).unwrap(), content(15));
    assert_eq!(answered(&bench.read(&[5])).unwrap(), content(5));
    assert_eq!(bench.worker.ordered().len(), before + 1);
}

#[test]
fn a_flight_for_an_image_that_is_gone_is_ordered_as_the_next_one_says() {
    let mut bench = Bench::new(SOON);
    let _abandoned = bench.read(&[1]);
    // Another image, which means other bytes by the chunk.
    bench.lease = None;
    let mut other = said(100);
    other[1].1.digest = DigestAlgorithm::Blake3.digest(b"new!");
    bench.lease = Some(bench.cache.blob(blob_id(), &coding(), 1 << 20, &other).unwrap());
    let read = bench.read(&[1]);
    assert_eq!(bench.worker.ordered(), [1, 1]);
    bench.deliver(1);
    assert!(waits(&read), "those are the bytes that the first one meant");
    bench.answer(1, Ok(b"new!"));
    assert_eq!(answered(&read).unwrap(), b"new!");
}

#[test]
fn holes_are_zeros() {
    let bench = Bench::new(SOON);
    let (sender, outcome) = mpsc::channel();
    bench.front.read(vec![Piece::Zeros(3)], move |result| sender.send(result.unwrap().to_vec()).unwrap());
    assert_eq!(outcome.try_recv().unwrap(), [0; 3]);
}

/// Answers within the call, as a worker may.
#[derive(Default)]
struct Instantly(Mutex<Weak<Front>>);

impl Worker for Instantly {
    fn fetch(&self, orders: Vec<Order>) {
        let front = self.0.lock().unwrap().upgrade().unwrap();
        for key in orders.iter().flat_map(Order::keys) {
            answer(&front, key, Ok(&content(key.chunk.0)));
        }
    }

    fn hurry(&self, _: ChunkKey) {}
}

#[test]
fn many_threads_that_race_for_chunks_all_get_them() {
    let mut bench = Bench::new(SOON);
    let worker = Arc::new(Instantly::default());
    bench.front = Front::new(worker.clone(), config(SOON, Duration::ZERO)).unwrap();
    *worker.0.lock().unwrap() = Arc::downgrade(&bench.front);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let bench = &bench;
            scope.spawn(move || {
                for chunk in 0..200 {
                    let other = (chunk + thread) % 200;
                    assert_eq!(answered(&bench.read(&[chunk, other])).unwrap(), contents(&[chunk, other]));
                }
            });
        }
    });
}
