//! What is ordered ahead of readers.

use super::*;

/// Bytes of what comes along for who comes from elsewhere: three chunks, which adjoin.
const FIRST: u64 = 12;
/// Bytes of a request.
const REQUEST: u64 = 8 * FIRST;
/// The most that may be ahead of a reader: four requests are, of a backend that is near, and whose rate is not known.
const WINDOW: u64 = 4 * REQUEST;

impl Bench {
    fn reading_ahead(ahead_bytes: u64) -> Self {
        let mut bench = Self::with(SOON, Duration::ZERO, 4);
        let config = FrontConfig { ahead_bytes, request_bytes: REQUEST, ..config(SOON, Duration::ZERO) };
        bench.front = Front::new(bench.worker.clone(), config).unwrap();
        bench
    }

    /// What was ordered since `before` of the chunks that were.
    fn ordered_since(&self, before: usize) -> Vec<u32> {
        self.worker.ordered().split_off(before)
    }

    /// Delivers all that was ordered, and is not there.
    fn deliver_all(&self) {
        for chunk in self.worker.ordered() {
            if !self.blob().is_ready(ChunkIndex(chunk)) {
                self.deliver(chunk);
            }
        }
    }

    /// Has the backend answer several times at once, of which the shortest counts: on a busy machine any one may look as if it were far.
    /// What it brings is behind all that tests read.
    fn answer_at_once(&self) {
        for chunk in (200..210).rev() {
            let brought = self.bring(&[chunk]);
            self.deliver(chunk);
            assert!(brought.recv_timeout(SOON).unwrap());
        }
    }

    /// Reads a chunk; `come` has it come, if it has to be waited for. Whether that was so.
    fn read_on(&self, chunk: u32, come: impl FnOnce()) -> bool {
        let read = self.read(&[chunk]);
        let (waited, found) = match read.try_recv() {
            Ok(found) => (false, found),
            Err(_) => {
                come();
                (true, answered(&read))
            }
        };
        assert_eq!(found.unwrap(), content(chunk));
        waited
    }

    /// Chunks that were ordered and are not there.
    fn on_way(&self) -> Vec<u32> {
        let mut chunks = self.worker.ordered();
        chunks.retain(|chunk| !self.blob().is_ready(ChunkIndex(*chunk)));
        chunks
    }
}

#[test]
fn a_reader_in_order_waits_for_the_first_chunk_only() {
    let bench = Bench::reading_ahead(1 << 20);
    let waits = |chunk: &u32| {
        let waited = bench.read_on(*chunk, || bench.deliver_all());
        bench.deliver_all();
        waited
    };
    assert_eq!((0..200).filter(waits).collect::<Vec<_>>(), [0]);
    let ordered = bench.worker.ordered();
    assert_eq!(ordered, (0..ordered.len() as u32).collect::<Vec<_>>(), "each once, in order");
}

#[test]
fn a_reader_goes_on_over_what_no_image_shows() {
    let mut bench = Bench::reading_ahead(1 << 20);
    // As where an image replaces files of the one that it is made from, which is not mounted.
    let is_shown = |chunk: u32| chunk % 10 < 7;
    let mut shown = said(4);
    shown.retain(|(chunk, _)| is_shown(chunk.0));
    let lease = bench.cache.blob(blob_id(), &coding(), 1 << 20, &shown).unwrap();
    bench.lease = Some(lease);
    let waits = |chunk: &u32| {
        let waited = bench.read_on(*chunk, || bench.deliver_all());
        bench.deliver_all();
        waited
    };
    let chunks = (0..200).filter(|chunk| is_shown(*chunk));
    assert_eq!(chunks.filter(waits).collect::<Vec<_>>(), [0]);
    assert!(bench.worker.ordered().into_iter().all(is_shown));
}

#[test]
fn the_further_a_reader_goes_the_more_requests_are_under_way_up_to_a_limit() {
    let bench = Bench::reading_ahead(1 << 20);
    bench.answer_at_once();
    let mut most = 0;
    for chunk in 0..100 {
        // What it waits for comes, and nothing before it is needed.
        bench.read_on(chunk, || {
            most = most.max(bench.on_way().len());
            bench.deliver(chunk);
        });
        assert!(bench.on_way().len() as u64 * 4 <= WINDOW + REQUEST, "{:?} at {chunk}", bench.on_way());
    }
    assert!(most as u64 * 4 >= WINDOW * 3 / 4, "{most} chunks at most");
}

#[test]
fn a_reader_that_leaps_has_nothing_ordered_but_what_comes_along() {
    let bench = Bench::reading_ahead(1 << 20);
    bench.answer_at_once();
    for leap in 0..40 {
        let (chunk, before) = (leap * 37 % 200, bench.worker.ordered().len());
        let read = bench.read(&[chunk]);
        let ordered = bench.ordered_since(before);
        assert!(ordered.len() as u64 * 4 <= FIRST, "{ordered:?} for {chunk}");
        bench.deliver_all();
        assert_eq!(answered(&read).unwrap(), content(chunk));
    }
}

#[test]
fn who_reads_a_file_here_and_there_has_less_than_as_much_again_ordered() {
    let bench = Bench::reading_ahead(1 << 20);
    bench.answer_at_once();
    let before = bench.worker.ordered().len();
    // Files of five chunks in a row.
    let files = [0, 160, 40, 120, 80];
    for chunk in files.into_iter().flat_map(|first| first..first + 5) {
        let read = bench.read(&[chunk]);
        bench.deliver_all();
        assert_eq!(answered(&read).unwrap(), content(chunk));
    }
    let ordered = bench.ordered_since(before).len();
    assert!(ordered < files.len() * 2 * 5, "{ordered} chunks");
}

#[test]
fn all_readers_of_a_blob_together_have_no_more_under_way_than_may_be() {
    // The worker counts in such units, and so each request for one.
    const REQUESTS: u64 = 6;
    let bench = Bench::reading_ahead(REQUESTS * 1024);
    let firsts = [0, 50, 100, 150];
    for step in 0..20 {
        for first in firsts {
            bench.read_on(first + step, || bench.deliver(first + step));
            let on_way = bench.on_way();
            // What readers wait for, and what comes along with that, goes before.
            let limit = (REQUESTS + firsts.len() as u64) * REQUEST;
            assert!(on_way.len() as u64 * 4 <= limit, "{on_way:?}");
        }
    }
}

#[test]
fn where_nothing_may_be_under_way_ahead_of_readers_only_what_comes_along_is_ordered() {
    let bench = Bench::reading_ahead(0);
    for chunk in 0..20 {
        let read = bench.read(&[chunk]);
        bench.deliver_all();
        assert_eq!(answered(&read).unwrap(), content(chunk));
    }
    assert_eq!(bench.worker.ordered(), (0..24).collect::<Vec<_>>(), "a request, as it may be far");
}

#[test]
fn of_what_is_far_the_files_before_one_come_along_too_and_after_what_is_waited_for() {
    let bench = Bench::reading_ahead(1 << 20);
    let first = bench.read(&[200]);
    // The time of an answer.
    std::thread::sleep(Duration::from_millis(50));
    bench.deliver_all();
    assert_eq!(answered(&first).unwrap(), content(200));
    let before = bench.worker.ordered().len();
    let read = bench.read(&[120]);
    let ordered = bench.ordered_since(before);
    assert_eq!(ordered[0], 120, "{ordered:?}");
    assert!(ordered.contains(&119) && ordered.contains(&121) && !ordered.contains(&0), "{ordered:?}");
    // Of what is wanted for itself only, nothing else is.
    let before = bench.worker.ordered().len();
    let _brought = bench.bring(&[5]);
    assert!(bench.ordered_since(before).iter().all(|chunk| *chunk >= 5));
    bench.deliver_all();
    assert_eq!(answered(&read).unwrap(), content(120));
}
