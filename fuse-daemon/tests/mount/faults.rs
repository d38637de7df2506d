//! Readers get right bytes or an error in time, whatever the backend does.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fuse_daemon::control::BlobId;
use fuse_daemon::worker::{Backend, BackendError};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use rafs::build::BuildOptions;
use test_support::{noise, tar_of};
use tokio::sync::watch;

use crate::image::{Node, SECOND_BOOT, Settings, TestImage, small_files};
use crate::{can_mount, eventually};

/// A backend that counts what is asked of the real one behind it, and may be made to fail.
pub(crate) struct Watched {
    inner: Arc<dyn Backend>,
    reads: Mutex<Vec<Range<u64>>>,
    bytes: AtomicUsize,
    behaviour: Behaviour,
    under_way: Arc<UnderWay>,
}

/// Requests that are being answered.
#[derive(Default)]
struct UnderWay {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl UnderWay {
    /// One more until the answer is over.
    fn begin(self: &Arc<Self>) -> impl Drop + Send + use<> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        struct End(Arc<UnderWay>);
        impl Drop for End {
            fn drop(&mut self) {
                self.0.now.fetch_sub(1, Ordering::SeqCst);
            }
        }
        End(Arc::clone(self))
    }
}

/// A line that takes so many bytes a second, one answer after the other.
pub(crate) struct Line {
    bytes_per_second: usize,
    /// When it takes more; nothing was sent over it before.
    free_at: Mutex<Option<Instant>>,
    idle: Mutex<Vec<Duration>>,
}

impl Line {
    pub(crate) fn of(bytes_per_second: usize) -> Arc<Self> {
        Arc::new(Self { bytes_per_second, free_at: Mutex::default(), idle: Mutex::default() })
    }

    /// How long it had nothing to take, each time between its first byte and its last.
    pub(crate) fn idle(&self) -> Vec<Duration> {
        self.idle.lock().unwrap().clone()
    }

    /// When so many bytes are through that are sent from `at` on.
    fn takes(&self, at: Instant, bytes: usize) -> Instant {
        let mut free_at = self.free_at.lock().unwrap();
        let begins = free_at.map_or(at, |free_at| free_at.max(at));
        self.idle.lock().unwrap().extend(free_at.map(|free_at| begins - free_at));
        let through = begins + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        *free_at = Some(through);
        through
    }
}

/// An answer in pieces, as they come over a line after `round_trip`.
fn over_line(answer: Bytes, round_trip: Duration, line: &Arc<Line>) -> Vec<(Instant, Bytes)> {
    let begins = Instant::now() + round_trip;
    let pieces = answer.chunks(32 << 10).map(|piece| answer.slice_ref(piece));
    pieces.map(|piece| (line.takes(begins, piece.len()), piece)).collect()
}

#[derive(Clone)]
pub(crate) enum Behaviour {
    Honest,
    /// Never answers.
    Stalled,
    /// Takes so long to begin.
    Slow(Duration),
    /// The same, over a line that all answers share.
    Line(Duration, Arc<Line>),
    /// Answers when the gate is opened.
    Gated(watch::Receiver<bool>),
    /// Ends in a bug the first time, while bytes arrive.
    PanicsOnce,
    /// Changes a byte of whatever it delivers.
    Corrupts,
}

impl Watched {
    pub(crate) fn over(image: &TestImage) -> Arc<Self> {
        Self::with(image, Behaviour::Honest)
    }

    pub(crate) fn stalled(image: &TestImage) -> Arc<Self> {
        Self::with(image, Behaviour::Stalled)
    }

    pub(crate) fn with(image: &TestImage, behaviour: Behaviour) -> Arc<Self> {
        Arc::new(Self {
            inner: image.backend(),
            reads: Mutex::default(),
            bytes: AtomicUsize::new(0),
            behaviour,
            under_way: Arc::default(),
        })
    }

    /// Requests that were under way at once, at most.
    pub(crate) fn most_at_once(&self) -> usize {
        self.under_way.most.load(Ordering::SeqCst)
    }

    pub(crate) fn reads(&self) -> usize {
        self.reads.lock().unwrap().len()
    }

    /// Stored bytes that were asked for.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Backend for Watched {
    /// Each is one of its own, and the same one for all that share it.
    fn name(&self) -> String {
        format!("watched {:p}", &raw const self.reads)
    }

    fn size(&self, blob: BlobId) -> BoxFuture<'_, Result<u64, BackendError>> {
        self.inner.size(blob)
    }

    fn read(&self, blob: BlobId, range: Range<u64>) -> BoxStream<'static, Result<Bytes, BackendError>> {
        self.bytes.fetch_add((range.end - range.start) as usize, Ordering::Relaxed);
        let mut reads = self.reads.lock().unwrap();
        reads.push(range.clone());
        let is_first = reads.len() == 1;
        let answer = self.inner.read(blob, range);
        match self.behaviour.clone() {
            Behaviour::Honest => answer,
            Behaviour::Stalled => futures::stream::pending().boxed(),
            Behaviour::Slow(time) => {
                let under_way = self.under_way.begin();
                futures::stream::once(async move { tokio::time::sleep(time).await })
                    .flat_map(|()| futures::stream::empty())
                    .chain(answer)
                    .inspect(move |_| {
                        let _until_the_stream_ends = &under_way;
                    })
                    .boxed()
            }
            Behaviour::Line(round_trip, line) => answer
                .flat_map(move |bytes| {
                    futures::stream::iter(over_line(bytes.unwrap(), round_trip, &line)).then(
                        |(at, piece)| async move {
                            tokio::time::sleep_until(at.into()).await;
                            Ok(piece)
                        },
                    )
                })
                .boxed(),
            Behaviour::Gated(mut gate) => futures::stream::once(async move {
                gate.wait_for(|open| *open).await.unwrap();
            })
            .flat_map(|()| futures::stream::empty())
            .chain(answer)
            .boxed(),
            Behaviour::PanicsOnce if is_first => {
                answer.map(|_| panic!("a bug, as this test wants it")).boxed()
            }
            Behaviour::PanicsOnce => answer,
            Behaviour::Corrupts => answer
                .map(|bytes| {
                    let mut bytes = bytes?.to_vec();
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 0x55;
                    Ok(bytes.into())
                })
                .boxed(),
        }
    }
}

pub(crate) const EIO: Option<i32> = Some(5);

#[test]
fn a_corrupt_chunk_is_an_error_of_that_file_alone() {
    if !can_mount() {
        return;
    }
    let contents: Vec<Vec<u8>> = (0..4).map(|seed| noise(seed, 300_000)).collect();
    let names = ["a", "b", "c", "d"];
    let files: Vec<(&str, &[u8])> = names.into_iter().zip(contents.iter().map(Vec::as_slice)).collect();
    let image =
        TestImage::build(&tar_of(&files), &BuildOptions { chunk_size: 65_536, ..BuildOptions::default() });
    let good = std::fs::read(image.blob_file()).unwrap();
    image.corrupt("b");
    let (_cache, node) = Node::fresh();
    let backend = Watched::over(&image);
    let mount = node.mount_from(&image, backend.clone());
    let log = crate::log::lines();
    for _ in 0..3 {
        for (name, content) in &files {
            match mount.read(name) {
                Ok(bytes) => assert!(*name != "b" && bytes == *content, "{name}"),
                Err(error) => assert!(*name == "b" && error.raw_os_error() == EIO, "{name}: {error}"),
            }
        }
    }
    // Attempts are bounded: a few for each of the five chunks, not one for each read.
    assert!(backend.reads() < 40, "{} requests", backend.reads());
    let blob = BlobId(image.blob_ids()[0]).to_string();
    let line = log.find(|line| line.contains(&blob) && line.contains("corrupt chunk, reads of it fail"));
    assert!(line.contains("ERROR") && line.contains("chunk="), "{line}");
    // Nothing of it was cached: once the backend is repaired, the file is.
    std::fs::write(image.blob_file(), good).unwrap();
    eventually("the file reads after the repair", || mount.read("b").is_ok_and(|bytes| bytes == contents[1]));
}

#[test]
fn concurrent_readers_of_a_chunk_cause_one_fetch() {
    if !can_mount() {
        return;
    }
    let content = noise(7, 900_000);
    let image = TestImage::build(&tar_of(&[("file", &content)]), &BuildOptions::default());
    let (_cache, node) = Node::fresh();
    let backend = Watched::over(&image);
    let mounts = [(); 3].map(|()| node.mount_from(&image, backend.clone()));
    let barrier = Barrier::new(12);
    std::thread::scope(|scope| {
        for reader in 0..12 {
            let (mount, barrier, content) = (&mounts[reader % 3], &barrier, &content);
            scope.spawn(move || {
                barrier.wait();
                assert!(mount.read("file").unwrap() == *content);
            });
        }
    });
    assert_eq!(backend.reads(), 1);
}

#[test]
fn what_is_cached_is_not_fetched_again_after_a_remount() {
    if !can_mount() {
        return;
    }
    let content = noise(8, 5_000_000);
    let image = TestImage::build(&tar_of(&[("file", &content)]), &BuildOptions::default());
    let cache = tempfile::tempdir().unwrap();
    for boot in 0..2 {
        let node = Node::new(cache.path(), &Settings::default());
        let backend = Watched::over(&image);
        let mount = node.mount_from(&image, backend.clone());
        assert!(mount.read("file").unwrap() == content);
        assert_eq!(backend.reads() > 0, boot == 0);
    }
}

#[test]
fn after_another_boot_the_cache_is_verified_not_fetched_and_what_was_lost_is_fetched() {
    if !can_mount() {
        return;
    }
    let content = noise(9, 4 << 20);
    let image = TestImage::build(&tar_of(&[("file", &content)]), &BuildOptions::default());
    let cache = tempfile::tempdir().unwrap();
    {
        let node = Node::new(cache.path(), &Settings::default());
        let mount = node.mount(&image);
        assert!(mount.read("file").unwrap() == content);
    }
    // As a crash may leave it: the map says that a chunk is there, the data never reached the disk.
    let data = cache.path().join(format!("{}.blob.data", image.blob_ids()[0]));
    let mut bytes = std::fs::read(&data).unwrap();
    bytes[1 << 20..2 << 20].fill(0);
    std::fs::write(&data, bytes).unwrap();
    let node =
        Node::new(cache.path(), &Settings { boot: SECOND_BOOT, request_bytes: 1, ..Settings::default() });
    let backend = Watched::over(&image);
    let mount = node.mount_from(&image, backend.clone());
    assert!(mount.read("file").unwrap() == content);
    assert_eq!(backend.reads(), 1);
}

#[test]
fn a_stalled_backend_is_an_error_within_the_deadline_and_holds_up_nothing_else() {
    if !can_mount() {
        return;
    }
    let (cached, missing) = (noise(10, 100_000), noise(11, 3_000_000));
    let image =
        TestImage::build(&tar_of(&[("cached", &cached), ("missing", &missing)]), &BuildOptions::default());
    let cache = tempfile::tempdir().unwrap();
    {
        let node = Node::new(cache.path(), &Settings { request_bytes: 1, ..Settings::default() });
        assert!(node.mount(&image).read("cached").unwrap() == cached);
    }
    {
        let node = Node::new(cache.path(), &Settings { deadline: crate::SOON, ..Settings::default() });
        let (open, gate) = watch::channel(false);
        let backend = Watched::with(&image, Behaviour::Gated(gate));
        let mount = node.mount_from(&image, backend.clone());
        std::thread::scope(|scope| {
            // More readers than threads that serve the kernel.
            let readers: Vec<_> = (0..6).map(|_| scope.spawn(|| mount.read("missing"))).collect();
            eventually("the backend is asked", || backend.reads() > 0);
            for _ in 0..20 {
                assert!(mount.read("cached").unwrap() == cached);
                assert!(mount.path("missing").exists() && !mount.path("other").exists());
            }
            assert!(!readers.iter().any(|reader| reader.is_finished()), "all of that is while they wait");
            open.send(true).unwrap();
            for reader in readers {
                assert!(reader.join().unwrap().unwrap() == missing);
            }
        });
    }
    let other = tempfile::tempdir().unwrap();
    let deadline = Duration::from_millis(1500);
    let node = Node::new(other.path(), &Settings { deadline, ..Settings::default() });
    let mount = node.mount_from(&image, Watched::stalled(&image));
    // Nothing but the deadline ends a read.
    let error = mount.read("missing").unwrap_err();
    assert_eq!(error.raw_os_error(), EIO);
}

#[test]
fn of_a_truncated_blob_only_what_is_missing_fails() {
    if !can_mount() {
        return;
    }
    let (front, back) = (noise(12, 200_000), noise(13, 200_000));
    let image = TestImage::build(&tar_of(&[("front", &front), ("back", &back)]), &BuildOptions::default());
    std::fs::File::options().write(true).open(image.blob_file()).unwrap().set_len(300_000).unwrap();
    let (_cache, node) = Node::fresh();
    let mount = node.mount(&image);
    assert!(mount.read("front").unwrap() == front);
    assert_eq!(mount.read("back").unwrap_err().raw_os_error(), EIO);
}

#[test]
fn small_files_that_adjoin_come_with_one_request() {
    if !can_mount() {
        return;
    }
    let files = small_files();
    let image = TestImage::build(&tar_of(&files), &BuildOptions::default());
    let (_cache, node) = Node::fresh();
    let backend = Watched::over(&image);
    let mount = node.mount_from(&image, backend.clone());
    for (name, content) in &files {
        assert!(mount.read(name).unwrap() == *content);
    }
    assert_eq!(backend.reads(), 1);
}

#[test]
fn a_batch_is_fetched_once_wherever_it_is_first_read() {
    if !can_mount() {
        return;
    }
    let files = small_files();
    let options = BuildOptions { batch_size: Some(65_536), ..BuildOptions::default() };
    let image = TestImage::build(&tar_of(&files), &options);
    // With small requests, each brings one batch alone; with large ones, what follows as well.
    for request_bytes in [1, 1 << 20] {
        let cache = tempfile::tempdir().unwrap();
        let node = Node::new(cache.path(), &Settings { request_bytes, ..Settings::default() });
        let backend = Watched::over(&image);
        let mount = node.mount_from(&image, backend.clone());
        // A mount reads the chunk information.
        let before = backend.reads();
        let barrier = Barrier::new(4);
        std::thread::scope(|scope| {
            for reader in 0..4 {
                let (mount, barrier, files) = (&mount, &barrier, &files);
                scope.spawn(move || {
                    barrier.wait();
                    // From the middle on, and backwards.
                    for place in (0..100).map(|step| (150 - step + reader) % 100) {
                        assert!(mount.read(&files[place].0).unwrap() == files[place].1);
                    }
                });
            }
        });
        let mut fetched = backend.reads.lock().unwrap()[before..].to_vec();
        fetched.sort_by_key(|range| range.start);
        assert!(fetched.windows(2).all(|pair| pair[0].end <= pair[1].start), "{fetched:?}");
        assert!(request_bytes > 1 || fetched.len() == 4, "200,000 bytes are four batches: {fetched:?}");
    }
}
