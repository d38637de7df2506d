mod whole;

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use rafs::blob::{Blob, Chunk, ChunkIndex};
use rafs::compress::Compressor;
use rafs::digest::{Digest, DigestAlgorithm};

use super::transfer::TOGETHER_BYTES;
use super::*;
use crate::cache::Generation;
use crate::front::{ArrivedChunk, BackendName, ChunkError, Content, Extent};

const SOON: Duration = Duration::from_secs(20);
const CHUNK: u64 = 1000;

/// A backend whose blobs have the byte `content` everywhere.
struct Even {
    name: &'static str,
    content: u8,
    behaviour: Behaviour,
    reads: AtomicUsize,
}

#[derive(Clone, Copy, PartialEq)]
enum Behaviour {
    Delivers,
    Refuses,
    /// Never says anything.
    Stalls,
    /// Delivers what is no larger than a chunk, of all else the first half.
    Halves,
    /// Ends in a bug, the first time.
    Panics,
}

impl Even {
    fn new(name: &'static str, content: u8, behaviour: Behaviour) -> Arc<Self> {
        Arc::new(Self { name, content, behaviour, reads: AtomicUsize::new(0) })
    }
}

impl Backend for Even {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn size(&self, _: BlobId) -> BoxFuture<'_, Result<u64, BackendError>> {
        async { Ok(100 * CHUNK) }.boxed()
    }

    fn read(&self, blob: BlobId, range: Range<u64>) -> BoxStream<'static, Result<Bytes, BackendError>> {
        let first = self.reads.fetch_add(1, Ordering::Relaxed) == 0;
        let bytes = Bytes::from(vec![self.content; (range.end - range.start) as usize]);
        match self.behaviour {
            Behaviour::Panics if first => panic!("a bug, as this test wants it"),
            Behaviour::Halves if bytes.len() > CHUNK as usize => {
                let half = bytes.slice(..bytes.len() / 2);
                futures::stream::iter([Ok(half)]).chain(futures::stream::pending()).boxed()
            }
            Behaviour::Delivers | Behaviour::Panics | Behaviour::Halves => {
                futures::stream::iter([Ok(bytes)]).boxed()
            }
            Behaviour::Refuses => {
                let missing = BackendError::Missing { repository: self.name.to_owned(), blob };
                futures::stream::iter([Err(missing)]).boxed()
            }
            Behaviour::Stalls => futures::stream::pending().boxed(),
        }
    }
}

type Answer = (ChunkKey, Result<(u8, BackendName), ChunkError>);

/// Takes what the worker answers.
struct Answers(Mutex<mpsc::Sender<Answer>>);

impl Responses for Answers {
    fn finished(&self, key: ChunkKey, outcome: Result<Content<'_>, ChunkError>) {
        let outcome = outcome.map(|content| (content.bytes[0], Arc::clone(content.from)));
        self.0.lock().unwrap().send((key, outcome)).unwrap();
    }
}

struct Bench {
    worker: LocalWorker,
    answers: mpsc::Receiver<Answer>,
    _responses: Arc<Answers>,
    _runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn new(buffer_bytes: usize, patience: Duration) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let config = WorkerConfig { buffer_bytes, threads: 1, patience };
        let worker = LocalWorker::new(config, runtime.handle().clone()).unwrap();
        let (sender, answers) = mpsc::channel();
        let responses = Arc::new(Answers(Mutex::new(sender)));
        worker.answer_to(Arc::downgrade(&responses) as Weak<dyn Responses>);
        Self { worker, answers, _responses: responses, _runtime: runtime }
    }

    fn register(&self, backend: &Arc<Even>, place: Place) -> Registration {
        self.worker.register(&[blob()], &(Arc::clone(backend) as Arc<dyn Backend>), place)
    }

    fn order(&self, chunks: Range<u32>, refused: &[&str], time: Duration) {
        self.worker.fetch(vec![order(chunks, refused, time)]);
    }

    /// The next answer, of whatever chunk.
    fn outcome(&self) -> Result<(u8, String), ChunkError> {
        let (_, outcome) = self.answers.recv_timeout(SOON).expect("an answer");
        outcome.map(|(byte, from)| (byte, from.to_string()))
    }
}

fn blob() -> BlobId {
    BlobId(DigestAlgorithm::Sha256.digest(b"blob"))
}

fn order(chunks: Range<u32>, refused: &[&str], time: Duration) -> Order {
    let coding = Blob::coding(4096, Compressor::None, DigestAlgorithm::Blake3);
    let extents = chunks.clone().map(|index| {
        let start = u64::from(index) * CHUNK;
        let chunk = Chunk {
            digest: Digest([0; 32]),
            compressed_offset: start,
            compressed_size: CHUNK as u32,
            uncompressed_offset: start,
            uncompressed_size: CHUNK as u32,
            compressed: false,
            batch: None,
        };
        Extent { stored: start..start + CHUNK, chunks: vec![(ChunkIndex(index), chunk)] }
    });
    Order {
        blob: blob(),
        generation: Generation(1),
        coding: Arc::new(coding),
        extents: extents.collect(),
        demanded: chunks.map(ChunkIndex).collect(),
        refused: refused.iter().map(|name| BackendName::from(*name)).collect(),
        until: Instant::now() + time,
    }
}

#[test]
fn each_chunk_of_an_order_is_answered_once() {
    let bench = Bench::new(1 << 20, SOON);
    let _registered = bench.register(&Even::new("a", 7, Behaviour::Delivers), Place::First);
    bench.order(0..5, &[], SOON);
    let mut chunks: Vec<u32> = (0..5).map(|_| bench.answers.recv_timeout(SOON).unwrap().0.chunk.0).collect();
    chunks.sort_unstable();
    assert_eq!(chunks, [0, 1, 2, 3, 4]);
    assert!(bench.answers.recv_timeout(Duration::from_millis(50)).is_err());
}

/// Takes which chunks are told of together.
struct Together(Mutex<mpsc::Sender<Vec<u32>>>);

impl Responses for Together {
    fn finished(&self, key: ChunkKey, _: Result<Content<'_>, ChunkError>) {
        self.0.lock().unwrap().send(vec![key.chunk.0]).unwrap();
    }

    fn arrived(&self, _: &BackendName, arrivals: Vec<ArrivedChunk<'_>>) {
        let chunks = arrivals.iter().map(|arrival| arrival.chunk.chunk.0).collect();
        self.0.lock().unwrap().send(chunks).unwrap();
    }
}

#[test]
fn chunks_that_arrive_together_are_told_of_together_apart_from_those_that_readers_wait_for() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let config = WorkerConfig { buffer_bytes: 1 << 20, threads: 1, patience: SOON };
    let worker = LocalWorker::new(config, runtime.handle().clone()).unwrap();
    let (sender, told) = mpsc::channel();
    let responses = Arc::new(Together(Mutex::new(sender)));
    worker.answer_to(Arc::downgrade(&responses) as Weak<dyn Responses>);
    let backend = Even::new("a", 7, Behaviour::Delivers) as Arc<dyn Backend>;
    let _registered = worker.register(&[blob()], &backend, Place::First);
    let chunks = 300_u32;
    worker.fetch(vec![Order { demanded: vec![ChunkIndex(2), ChunkIndex(4)], ..order(0..chunks, &[], SOON) }]);
    let mut all: Vec<Vec<u32>> = Vec::new();
    while all.iter().flatten().count() < chunks as usize {
        all.push(told.recv_timeout(SOON).expect("an answer"));
    }
    assert_eq!(all[0], [2, 4]);
    // As many as are decoded one after the other, and what is left.
    let many = TOGETHER_BYTES.div_ceil(CHUNK) as u32;
    let first: Vec<u32> = (0..many).filter(|chunk| ![2, 4].contains(chunk)).collect();
    assert_eq!(all[1..], [first, (many..chunks).collect()]);
}

#[test]
fn a_backend_is_one_however_many_images_name_it() {
    let bench = Bench::new(1 << 20, SOON);
    let backend = Even::new("a", 7, Behaviour::Refuses);
    let registered: Vec<_> = (0..8)
        .map(|_| bench.register(&Even::new("a", 8, Behaviour::Delivers), Place::First))
        .chain([bench.register(&backend, Place::Last)])
        .collect();
    assert_eq!(bench.worker.shared.sources.of(blob()).len(), 1);
    drop(registered);
    assert!(bench.worker.shared.sources.of(blob()).is_empty());
}

#[test]
fn where_one_backend_refuses_the_next_is_asked_and_first_from_then_on() {
    let bench = Bench::new(1 << 20, SOON);
    let (refuses, delivers) =
        (Even::new("no", 1, Behaviour::Refuses), Even::new("yes", 2, Behaviour::Delivers));
    let _registered = [bench.register(&refuses, Place::First), bench.register(&delivers, Place::Last)];
    for chunk in 0..3 {
        bench.order(chunk..chunk + 1, &[], SOON);
        assert_eq!(bench.outcome().unwrap(), (2, "yes".to_owned()));
    }
    assert_eq!(refuses.reads.load(Ordering::Relaxed), 1);
}

#[test]
fn beside_a_backend_that_stands_still_the_next_is_asked() {
    let bench = Bench::new(1 << 20, Duration::from_millis(30));
    let stalls = Even::new("stalls", 1, Behaviour::Stalls);
    let _registered = [
        bench.register(&stalls, Place::First),
        bench.register(&Even::new("yes", 2, Behaviour::Delivers), Place::Last),
    ];
    bench.order(0..3, &[], SOON);
    for _ in 0..3 {
        assert_eq!(bench.outcome().unwrap(), (2, "yes".to_owned()));
    }
}

#[test]
fn what_comes_too_late_says_who_was_asked() {
    let bench = Bench::new(1 << 20, SOON);
    let _registered = bench.register(&Even::new("stalls", 1, Behaviour::Stalls), Place::First);
    bench.order(0..1, &[], Duration::from_millis(30));
    assert!(matches!(bench.outcome(), Err(ChunkError::Late(text)) if text.contains("stalls")));
}

#[test]
fn who_delivered_it_corrupt_is_not_asked_again_unless_it_is_alone_once() {
    let bench = Bench::new(1 << 20, SOON);
    let _one = bench.register(&Even::new("one", 1, Behaviour::Delivers), Place::First);
    bench.order(0..1, &["one"], SOON);
    assert_eq!(bench.outcome().unwrap().1, "one");
    bench.order(0..1, &["one", "one"], SOON);
    assert_eq!(bench.outcome(), Err(ChunkError::Exhausted));
    let _two = bench.register(&Even::new("two", 1, Behaviour::Delivers), Place::Last);
    bench.order(0..1, &["one"], SOON);
    assert_eq!(bench.outcome().unwrap().1, "two");
    bench.order(0..1, &["one", "two"], SOON);
    assert_eq!(bench.outcome(), Err(ChunkError::Exhausted));
}

#[test]
fn work_that_ends_in_a_bug_is_told_as_lost() {
    let bench = Bench::new(1 << 20, SOON);
    let _registered = bench.register(&Even::new("a", 7, Behaviour::Panics), Place::First);
    bench.order(0..2, &[], SOON);
    assert_eq!([bench.outcome(), bench.outcome()], [Err(ChunkError::Lost), Err(ChunkError::Lost)]);
    bench.order(0..1, &[], SOON);
    assert_eq!(bench.outcome().unwrap().0, 7);
}

#[test]
fn work_whose_runtime_ends_is_told_as_lost() {
    let Bench { worker, answers, _responses, _runtime } = Bench::new(1 << 20, SOON);
    let backend: Arc<dyn Backend> = Even::new("stalls", 1, Behaviour::Stalls);
    let _registered = worker.register(&[blob()], &backend, Place::First);
    worker.fetch(vec![order(0..1, &[], SOON)]);
    _runtime.shutdown_background();
    assert_eq!(answers.recv_timeout(SOON).unwrap().1, Err(ChunkError::Lost));
}

#[test]
fn backends_that_stand_still_hold_up_no_other_however_much_is_asked_of_them() {
    // Memory for four chunks.
    let bench = Bench::new(4 * CHUNK as usize, SOON);
    let stalls = Even::new("stalls", 1, Behaviour::Stalls);
    let other = BlobId(DigestAlgorithm::Sha256.digest(b"other"));
    let _stalls = bench.register(&stalls, Place::First);
    let healthy: Arc<dyn Backend> = Even::new("healthy", 2, Behaviour::Delivers);
    let _healthy = bench.worker.register(&[other], &healthy, Place::First);
    for chunk in 0..50 {
        bench.order(chunk..chunk + 1, &[], SOON);
    }
    bench.worker.fetch(vec![Order { blob: other, ..order(0..50, &[], SOON) }]);
    for _ in 0..50 {
        assert_eq!(bench.outcome().unwrap(), (2, "healthy".to_owned()));
    }
}
