//! What is brought whole has its part of the memory, and no more.

use std::io::{Read as _, Seek as _};

use futures::future::join_all;
use rafs::blob::MetaLocation;
use rafs::blob::source::BlobError;
use rafs::layout::flags;

use super::*;

/// Of this the half may be arriving from one backend, and the half of that be brought whole.
const MEMORY: usize = 200_000;
/// Of one thing that is brought whole: two of them are what one backend may hold.
const WHOLE: u64 = MEMORY as u64 / 8;

fn numbered(number: u32) -> BlobId {
    BlobId(DigestAlgorithm::Sha256.digest(&number.to_le_bytes()))
}

/// A part with the byte 2 everywhere.
fn part(blob: BlobId, bytes: u64) -> StoredPart {
    let digest = DigestAlgorithm::Sha256.digest(&vec![2; bytes as usize]);
    let expected = ExpectedPart::Sha256(BlobId(digest));
    StoredPart { blob, range: 0..bytes, packed: false, limit: bytes, expected }
}

/// A blob whose chunk information takes [`WHOLE`] bytes: as it is stored, as an array, and digests of twice that.
fn with_chunk_info(id: BlobId) -> Blob {
    let (compressor, size) = (Compressor::None, WHOLE / 4);
    let meta = MetaLocation { offset: 0, compressed_size: size, uncompressed_size: size, compressor };
    Blob { id: Some(id.0), meta: Some(meta), ..Blob::coding(4096, compressor, DigestAlgorithm::Blake3) }
}

impl Bench {
    fn register_for(&self, blobs: &[BlobId], backend: &Arc<Even>, place: Place) -> Registration {
        self.worker.register(blobs, &(Arc::clone(backend) as Arc<dyn Backend>), place)
    }

    /// Has parts and chunk information of many blobs brought, which do not come.
    fn ask_for_much(&self, blobs: &[BlobId]) {
        let worker = LocalWorker { shared: Arc::clone(&self.worker.shared) };
        let blobs = blobs.to_vec();
        self._runtime.spawn(async move {
            let until = tokio::time::Instant::now() + SOON;
            let infos = blobs.iter().map(|id| {
                let (worker, blob) = (&worker, with_chunk_info(*id));
                async move { worker.chunk_info_parts(&blob, until).await.map(drop) }
            });
            let parts = blobs.iter().map(|id| {
                let file = tempfile::tempfile().unwrap();
                worker.part(part(*id, WHOLE), until, file)
            });
            tokio::join!(join_all(infos), join_all(parts));
        });
    }

    fn bring(&self, part: StoredPart) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        let written = file.try_clone().unwrap();
        let until = tokio::time::Instant::now() + SOON;
        self._runtime.block_on(self.worker.part(part, until, written)).unwrap();
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_backend_that_stands_still_holds_its_share_and_others_go_on() {
    let bench = Bench::new(MEMORY, SOON);
    let stalled: Vec<_> = (0..20).map(numbered).collect();
    let halves = Even::new("halves", 1, Behaviour::Halves);
    let _halves = bench.register_for(&stalled, &halves, Place::First);
    let healthy = Even::new("healthy", 2, Behaviour::Delivers);
    let _healthy = bench.register(&healthy, Place::First);
    bench.ask_for_much(&stalled);
    wait_until("it is asked for as much as it may hold", || halves.reads.load(Ordering::Relaxed) >= 2);
    for chunk in 0..50 {
        bench.order(chunk..chunk + 1, &[], SOON);
        assert_eq!(bench.outcome().unwrap(), (2, "healthy".to_owned()));
        assert_eq!(bench.bring(part(blob(), WHOLE)), vec![2; WHOLE as usize]);
    }
    assert_eq!(halves.reads.load(Ordering::Relaxed), 2, "it was asked for more than it may hold");
    let used = bench.worker.shared.budget.used();
    assert!((1..=MEMORY / 4).contains(&used), "{used} bytes are counted");
}

#[test]
fn chunks_come_beside_what_is_brought_whole_of_the_same_backend() {
    let bench = Bench::new(MEMORY, SOON);
    let all: Vec<_> = (0..20).map(numbered).chain([blob()]).collect();
    let halves = Even::new("halves", 1, Behaviour::Halves);
    let _registered = bench.register_for(&all, &halves, Place::First);
    bench.ask_for_much(&all);
    wait_until("it is asked for as much as it may hold", || halves.reads.load(Ordering::Relaxed) >= 2);
    for chunk in 0..50 {
        bench.order(chunk..chunk + 1, &[], SOON);
    }
    for _ in 0..50 {
        assert_eq!(bench.outcome().unwrap(), (1, "halves".to_owned()));
    }
}

#[test]
fn what_is_larger_than_all_of_the_memory_comes_too() {
    let bench = Bench::new(MEMORY, SOON);
    let _registered = bench.register(&Even::new("a", 2, Behaviour::Delivers), Place::First);
    let bytes = 3 * MEMORY;
    assert_eq!(bench.bring(part(blob(), bytes as u64)), vec![2; bytes]);
    assert_eq!(bench.worker.shared.budget.used(), 0);
}

#[test]
fn what_one_backend_sends_half_of_another_one_delivers() {
    let bench = Bench::new(MEMORY, Duration::from_millis(30));
    let _registered = [
        bench.register(&Even::new("halves", 1, Behaviour::Halves), Place::First),
        bench.register(&Even::new("yes", 2, Behaviour::Delivers), Place::Last),
    ];
    assert_eq!(bench.bring(part(blob(), WHOLE)), vec![2; WHOLE as usize]);
    assert_eq!(bench.worker.shared.budget.used(), 0);
}

#[test]
fn wrong_chunk_information_of_one_backend_is_asked_of_the_next() {
    let bench = Bench::new(MEMORY, SOON);
    let [one, other] =
        [(1, "one"), (2, "other")].map(|(content, name)| Even::new(name, content, Behaviour::Delivers));
    let _registered = [bench.register(&one, Place::First), bench.register(&other, Place::Last)];
    let described = Blob { features: flags::blob::HAS_TOC, ..with_chunk_info(blob()) };
    let until = tokio::time::Instant::now() + SOON;
    let read = bench._runtime.block_on(bench.worker.chunk_info_parts(&described, until));
    assert!(
        matches!(*read.err().unwrap(), BlobError::Toc { .. }),
        "what both deliver is no table of contents"
    );
    let asked = [&one, &other].map(|backend| backend.reads.load(Ordering::Relaxed));
    assert_eq!(asked, [2, 2], "chunk information and table of contents, of either");
    assert_eq!(bench.worker.shared.budget.used(), 0);
}

#[test]
fn a_backend_whose_chunk_information_is_wrong_is_not_asked_for_it_again() {
    let bench = Bench::new(MEMORY, Duration::from_millis(300));
    let [lies, stalls] = [("lies", Behaviour::Delivers), ("stalls", Behaviour::Stalls)]
        .map(|(name, behaviour)| Even::new(name, 1, behaviour));
    let _registered = [bench.register(&lies, Place::First), bench.register(&stalls, Place::Last)];
    let described = Blob { features: flags::blob::HAS_TOC, ..with_chunk_info(blob()) };
    let late = tokio::time::Instant::now() + Duration::from_secs(3);
    let read = bench._runtime.block_on(bench.worker.chunk_info_parts(&described, late));
    assert!(matches!(*read.err().unwrap(), BlobError::Io { .. }), "what the other one has may be right");
    let asked = [&lies, &stalls].map(|backend| backend.reads.load(Ordering::Relaxed));
    assert_eq!(asked, [2, 1], "though the other one stands still");
}

#[test]
fn a_backend_whose_part_is_wrong_is_not_asked_for_it_again() {
    let bench = Bench::new(MEMORY, Duration::from_millis(300));
    let [lies, stalls] = [("lies", Behaviour::Delivers), ("stalls", Behaviour::Stalls)]
        .map(|(name, behaviour)| Even::new(name, 1, behaviour));
    let _registered = [bench.register(&lies, Place::First), bench.register(&stalls, Place::Last)];
    let late = tokio::time::Instant::now() + Duration::from_secs(3);
    let file = tempfile::tempfile().unwrap();
    let brought = bench._runtime.block_on(bench.worker.part(part(blob(), WHOLE), late, file));
    assert_eq!(brought.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    let asked = [&lies, &stalls].map(|backend| backend.reads.load(Ordering::Relaxed));
    assert_eq!(asked, [1, 1], "though the other one stands still");
    assert_eq!(bench.worker.shared.budget.used(), 0);
}
