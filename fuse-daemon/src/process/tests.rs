//! A front with workers that end, hang or lie, each in the place of a process.

mod mounts;
mod peer;
mod registrations;
mod sources;
mod summary;

use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rafs::blob::{Blob, Chunk, ChunkIndex};
use rafs::compress::Compressor;
use rafs::digest::DigestAlgorithm;
use registry::client::{Client, ClientConfig};

use super::launch::Launch;
use super::message::{ChunkFailure, FromWorker, ToWorker};
use super::remote::{ProcessConfig, RemoteWorker};
use crate::access::Accesses;
use crate::cache::{BootId, Cache, CachedBlob, Generation, Lease, Said};
use crate::control::{BackendSpec, BlobId};
use crate::front::{ChunkKey, Front, FrontConfig, Orders, Piece};
use crate::worker::{ExpectedPart, Fetcher, Place, StoredPart, WorkerConfig};
use peer::{Act, Peer, honest, workers};

const SOON: Duration = Duration::from_secs(20);
const CHUNK: usize = 10_000;
const CHUNKS: u32 = 20;
const PLACE: u64 = 12_288;

/// Where nobody has credentials.
fn accesses() -> Arc<Accesses> {
    Arc::new(Accesses::new(Client::new(ClientConfig::default()).unwrap()))
}

fn remote_worker(
    launch: Launch,
    deadline: Duration,
    accesses: &Arc<Accesses>,
    runtime: &tokio::runtime::Handle,
) -> RemoteWorker {
    let worker = WorkerConfig { buffer_bytes: 1 << 20, threads: 2, patience: deadline };
    let registry = ClientConfig::default();
    let config = ProcessConfig { worker, deadline, user: 0, registry, arguments: Vec::new() };
    RemoteWorker::with(config, runtime.clone(), Arc::clone(accesses), launch)
}

struct Bench {
    _dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    lease: Lease,
    front: Arc<Front>,
    worker: Arc<RemoteWorker>,
    launched: Arc<AtomicUsize>,
    blobs: std::path::PathBuf,
    stored: Vec<u8>,
}

fn content(index: u32) -> Vec<u8> {
    (0..CHUNK).map(|at| (at as u32 * 7 + index * 31) as u8).collect()
}

fn said() -> Vec<Said> {
    let chunk = |index: u32| Chunk {
        digest: DigestAlgorithm::Blake3.digest(&content(index)),
        compressed_offset: u64::from(index) * CHUNK as u64,
        compressed_size: CHUNK as u32,
        uncompressed_offset: u64::from(index) * PLACE,
        uncompressed_size: CHUNK as u32,
        compressed: false,
        batch: None,
    };
    (0..CHUNKS).map(|index| (ChunkIndex(index), chunk(index))).collect()
}

fn coding() -> Blob {
    Blob::coding(1 << 20, Compressor::None, DigestAlgorithm::Blake3)
}

impl Bench {
    fn new(acts: &[Act], deadline: Duration) -> Self {
        Self::with(acts, deadline, false)
    }

    fn with(acts: &[Act], deadline: Duration, crash: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let stored: Vec<u8> = (0..CHUNKS).flat_map(content).collect();
        let id = BlobId(DigestAlgorithm::Sha256.digest(&stored));
        let blobs = dir.path().join("blobs");
        std::fs::create_dir(&blobs).unwrap();
        std::fs::write(blobs.join(id.0.to_string()), &stored).unwrap();
        let cache = Cache::open(dir.path().join("cache"), BootId([1; 16])).unwrap();
        let lease = cache.blob(id, &Arc::new(coding()), 1 << 20, &said()).unwrap();
        let (launch, launched) = workers(acts.to_vec(), crash);
        let worker = Arc::new(remote_worker(launch, deadline, &accesses(), runtime.handle()));
        let failure_memory = Duration::ZERO;
        let config = FrontConfig { deadline, request_bytes: 1, ahead_bytes: 0, threads: 1, failure_memory };
        let front = Front::new(worker.clone(), config).unwrap();
        let orders = Arc::downgrade(&front);
        worker.connect(orders as std::sync::Weak<dyn Orders>).unwrap();
        Self { _dir: dir, runtime, lease, front, worker, launched, blobs, stored }
    }

    fn blob(&self) -> Arc<CachedBlob> {
        Arc::clone(self.lease.blob())
    }

    fn register(&self) -> impl Sized {
        let directory = BackendSpec::Directory { path: self.blobs.clone() };
        self.worker.register(&[self.blob().id()], &directory, Place::First)
    }

    /// All of a chunk, or why not.
    fn read(&self, chunk: u32) -> Result<Vec<u8>, String> {
        let piece = Piece::Chunk {
            blob: self.blob(),
            chunk: ChunkIndex(chunk),
            offset: u64::from(chunk) * PLACE,
            len: CHUNK,
        };
        let (sender, outcome) = mpsc::channel();
        self.front.read(vec![piece], move |result| {
            sender.send(result.map(<[u8]>::to_vec).map_err(|error| error.to_string())).unwrap();
        });
        outcome.recv_timeout(SOON).expect("an answer")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.worker.shared.stop.cancel();
    }
}

#[test]
fn chunks_come_through_shared_memory_out_of_files_that_the_front_opens() {
    let bench = Bench::new(&[honest], SOON);
    let _kept = bench.register();
    for chunk in 0..CHUNKS {
        assert!(bench.read(chunk).unwrap() == content(chunk), "chunk {chunk}");
    }
    assert_eq!(bench.launched.load(Ordering::Relaxed), 1);
}

/// Sends what no worker may, in place of a chunk.
const NONSENSE: [Act; 9] = [
    |mut peer| drop(peer.order()),
    |mut peer| {
        peer.order();
        peer.raw(b"\x05\0\0\0hello");
        peer.wait();
    },
    |mut peer| {
        peer.order();
        peer.raw(b"\xff\xff\xff\xff");
        peer.wait();
    },
    |mut peer| {
        let key = peer.order()[0];
        peer.deliver(key, u64::MAX - 5, 10);
        peer.wait();
    },
    |mut peer| {
        let key = peer.order()[0];
        peer.deliver(key, 0, u32::MAX);
        peer.wait();
    },
    |mut peer| {
        let key = peer.order()[0];
        // None of them reaches beyond the memory.
        peer.deliver_together(&[key; 17], 0, 1 << 20);
        peer.wait();
    },
    |mut peer| {
        peer.order();
        peer.raw(b"\x0c\0\0\0{\"ready\":{}}");
        peer.wait();
    },
    |peer| peer.raw(b"\x02\0\0\0{}"),
    honest,
];

#[test]
fn workers_that_talk_nonsense_are_replaced_and_readers_notice_nothing() {
    let bench = Bench::new(&NONSENSE, SOON);
    let _kept = bench.register();
    for chunk in 0..CHUNKS {
        assert!(bench.read(chunk).unwrap() == content(chunk), "chunk {chunk}");
    }
    assert_eq!(bench.worker.condition().restarts, 7);
    assert_eq!(bench.launched.load(Ordering::Relaxed), NONSENSE.len());
}

/// Delivers what nobody ordered, and other bytes than those that were.
fn liar(mut peer: Peer) {
    let key = peer.order()[0];
    let file = std::fs::File::from(peer.memory.try_clone().unwrap());
    file.write_all_at(&vec![0x5a; CHUNK], 0).unwrap();
    file.write_all_at(&content(19), CHUNK as u64).unwrap();
    let len = CHUNK as u32;
    // What is right for chunks that nobody asked for, or for files that are not.
    peer.deliver(ChunkKey { chunk: ChunkIndex(19), ..key }, CHUNK as u64, len);
    peer.deliver(ChunkKey { chunk: ChunkIndex(u32::MAX), ..key }, 0, len);
    peer.deliver(ChunkKey { generation: Generation(99), ..key }, 0, len);
    peer.deliver(ChunkKey { blob: BlobId(DigestAlgorithm::Sha256.digest(b"other")), ..key }, 0, len);
    // For the chunk that somebody waits for: other bytes, another chunk's, too few, too many, none.
    for (at, len) in [(0, len), (CHUNK as u64, len), (0, len - 1), (0, len + 1), (0, 0)] {
        peer.deliver(key, at, len);
    }
    peer.sender.send(&FromWorker::Failed { chunk: key.into(), failure: ChunkFailure::Lost }, None);
    peer.sender.send(&FromWorker::ChunkInfo { number: 77, outcome: Err("\n".to_owned()) }, None);
    peer.sender.send(&FromWorker::Pong { number: 77 }, None);
    let question = super::message::Question::File { directory: "/etc".into(), blob: key.blob };
    peer.sender.send(&FromWorker::Ask { number: 1, question }, None);
    loop {
        let message = peer.receiver.next().unwrap().unwrap();
        if let ToWorker::Answer { answer, .. } = serde_json::from_slice(&message).unwrap() {
            let reason = "no image is read from there".to_owned();
            assert_eq!(answer, super::message::WorkerAnswer::Refused { reason });
            return;
        }
    }
}

#[test]
fn a_worker_that_lies_changes_nothing_and_breaks_nobody() {
    let bench = Bench::new(&[liar, liar, honest], SOON);
    let _kept = bench.register();
    for chunk in 0..CHUNKS {
        assert!(bench.read(chunk).unwrap() == content(chunk), "chunk {chunk}");
    }
    assert_eq!(bench.launched.load(Ordering::Relaxed), 3);
}

#[test]
fn a_worker_that_only_lies_has_reads_fail_and_no_byte_wrong() {
    let forger: Act = |mut peer| {
        let file = std::fs::File::from(peer.memory.try_clone().unwrap());
        file.write_all_at(&vec![0x5a; CHUNK], 0).unwrap();
        peer.ready();
        while let Ok(Some(message)) = peer.receiver.next() {
            if let ToWorker::Fetch(order) = serde_json::from_slice(&message).unwrap() {
                order.order().keys().for_each(|key| peer.deliver(key, 0, CHUNK as u32));
            }
        }
    };
    let bench = Bench::new(&[forger], SOON);
    let _kept = bench.register();
    let error = bench.read(3).unwrap_err();
    assert!(error.contains("corrupt"), "{error}");
    assert!(!bench.blob().is_ready(ChunkIndex(3)));
}

#[test]
fn a_worker_that_hangs_is_noticed_and_replaced() {
    let hangs: Act = |mut peer| {
        peer.order();
        // It does not even echo a ping.
        peer.wait();
    };
    let bench = Bench::new(&[hangs, honest], Duration::from_secs(8));
    let _kept = bench.register();
    let begun = Instant::now();
    assert!(bench.read(1).unwrap() == content(1));
    assert!(begun.elapsed() >= Duration::from_secs(1), "it was given time");
    assert_eq!(bench.launched.load(Ordering::Relaxed), 2);
}

#[test]
fn a_worker_that_lives_and_never_answers_an_order_is_replaced() {
    let lazy: Act = |mut peer| {
        peer.ready();
        while let Ok(Some(message)) = peer.receiver.next() {
            if let ToWorker::Ping { number } = serde_json::from_slice(&message).unwrap() {
                peer.sender.send(&FromWorker::Pong { number }, None);
            }
        }
    };
    let bench = Bench::new(&[lazy, honest], Duration::from_secs(2));
    let _kept = bench.register();
    // Refused in time, and brought by the next worker.
    assert!(bench.read(1).is_err());
    let until = Instant::now() + SOON;
    while bench.read(2).is_err() {
        assert!(Instant::now() < until, "no other worker came");
    }
    assert_eq!(bench.launched.load(Ordering::Relaxed), 2);
}

#[test]
fn chunk_information_is_asked_again_of_the_next_worker_and_lies_about_it_are_refused() {
    let dies: Act = |mut peer| {
        peer.ready();
        while let Ok(Some(message)) = peer.receiver.next() {
            if let ToWorker::ChunkInfo { .. } = serde_json::from_slice(&message).unwrap() {
                return;
            }
        }
    };
    let lies: Act = |mut peer| {
        peer.ready();
        while let Ok(Some(message)) = peer.receiver.next() {
            if let ToWorker::ChunkInfo { number, .. } = serde_json::from_slice(&message).unwrap() {
                let half = u64::MAX / 2;
                let lengths = super::message::InfoLengths {
                    header: 4096,
                    array: half,
                    tail: half,
                    digests: half,
                    stream_size: 0,
                };
                peer.sender.send(&FromWorker::ChunkInfo { number, outcome: Ok(lengths) }, None);
            }
        }
    };
    let bench = Bench::new(&[dies, lies], SOON);
    let until = tokio::time::Instant::now() + SOON;
    let blob = Blob { id: Some(bench.blob().id().0), ..coding() };
    let error = bench.runtime.block_on(bench.worker.chunk_info(&blob, until)).unwrap_err();
    let text = crate::describe(&error);
    assert!(text.contains("more bytes than it can have"), "{text}");
    assert_eq!(bench.launched.load(Ordering::Relaxed), 2);
    assert_eq!(bench.stored.len(), CHUNKS as usize * CHUNK);
}

#[test]
fn a_part_of_a_blob_is_brought_by_the_next_worker_and_no_more_of_it_than_was_asked_for() {
    let dies: Act = |mut peer| {
        peer.ready();
        while let Ok(Some(message)) = peer.receiver.next() {
            if let ToWorker::Part { .. } = serde_json::from_slice(&message).unwrap() {
                return;
            }
        }
    };
    let lies: Act = |mut peer| {
        peer.ready();
        while let Ok(Some(message)) = peer.receiver.next() {
            if let ToWorker::Part { number, .. } = serde_json::from_slice(&message).unwrap() {
                let outcome = if number.is_multiple_of(2) { Ok(u64::MAX) } else { Err("\n".to_owned()) };
                peer.sender.send(&FromWorker::Part { number, outcome }, None);
            }
        }
    };
    let until = tokio::time::Instant::now() + SOON;
    let bench = Bench::new(&[dies, honest], SOON);
    let kept = bench.register();
    let expected = ExpectedPart::Sha256(BlobId(DigestAlgorithm::Sha256.digest(&bench.stored[5..1000])));
    let part = StoredPart { blob: bench.blob().id(), range: 5..1000, packed: false, limit: 995, expected };
    let (file, bytes) = bench.runtime.block_on(bench.worker.part(&part, until)).unwrap();
    let mut copy = vec![0; bytes as usize];
    file.read_exact_at(&mut copy, 0).unwrap();
    assert_eq!(copy, bench.stored[5..1000]);
    assert_eq!(bench.launched.load(Ordering::Relaxed), 2);
    let shorter = StoredPart { limit: 994, ..part.clone() };
    let error = bench.runtime.block_on(bench.worker.part(&shorter, until)).unwrap_err();
    assert!(error.to_string().contains("more than 994 bytes"), "{error}");
    drop(kept);
    drop(bench);

    let bench = Bench::new(&[lies], SOON);
    for _ in 0..2 {
        let error = bench.runtime.block_on(bench.worker.part(&part, until)).unwrap_err().to_string();
        assert!(error.contains("something else") || error == "?", "{error}");
    }
}

/// Ends over one chunk, whenever it is asked for it, and works else.
fn mortal(mut peer: Peer) {
    let file = std::fs::File::from(peer.memory.try_clone().unwrap());
    peer.ready();
    while let Ok(Some(message)) = peer.receiver.next() {
        if let ToWorker::Fetch(order) = serde_json::from_slice(&message).unwrap() {
            for key in order.order().keys() {
                if key.chunk.0 == DEADLY {
                    return;
                }
                let at = u64::from(key.chunk.0) * CHUNK as u64;
                file.write_all_at(&content(key.chunk.0), at).unwrap();
                peer.deliver(key, at, CHUNK as u32);
            }
        }
    }
}

const DEADLY: u32 = 7;

#[test]
fn a_chunk_that_workers_end_over_fails_alone() {
    let bench = Bench::with(&[mortal], SOON, true);
    let _kept = bench.register();
    // All at once, so that it is not known which one it is.
    let answers: Vec<_> = std::thread::scope(|scope| {
        let bench = &bench;
        let readers: Vec<_> = (0..CHUNKS).map(|chunk| scope.spawn(move || bench.read(chunk))).collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    for (chunk, answer) in (0..).zip(answers) {
        match answer {
            Ok(bytes) => assert!(chunk != DEADLY && bytes == content(chunk), "chunk {chunk}"),
            Err(error) => assert!(chunk == DEADLY && error.contains("has ended"), "chunk {chunk}: {error}"),
        }
    }
    // A program that tries again ends no other.
    let launched = bench.launched.load(Ordering::Relaxed);
    assert!(bench.read(DEADLY).unwrap_err().contains("has ended"));
    assert_eq!(bench.launched.load(Ordering::Relaxed), launched);
}
