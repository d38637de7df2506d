//! What is ordered ahead of readers.

use super::*;

/// Bytes of a request: three chunks, which adjoin.
const REQUEST: u64 = 12;
/// The most that may be ahead of a reader: four requests are, of a backend that is near.
const WINDOW: u64 = 4 * REQUEST;

impl Bench {
    fn reading_ahead(ahead_bytes: u64) -> Self {
        let mut bench = Self::with(SOON, Duration::ZERO, 4);
        let config = FrontConfig { ahead_bytes, ..config(SOON, Duration::ZERO) };
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
    let mut waited = Vec::new();
    for chunk in 0..200 {
        let read = bench.read(&[chunk]);
        if waits(&read) {
            waited.push(chunk);
        }
        bench.deliver_all();
        assert_eq!(answered(&read).unwrap(), content(chunk));
    }
    assert_eq!(waited, [0]);
    let ordered = bench.worker.ordered();
    assert_eq!(ordered, (0..ordered.len() as u32).collect::<Vec<_>>(), "each once, in order");
}

#[test]
fn the_further_a_reader_goes_the_more_requests_are_under_way_up_to_a_limit() {
    let bench = Bench::reading_ahead(1 << 20);
    let mut most = 0;
    for chunk in 0..100 {
        let read = bench.read(&[chunk]);
        most = most.max(bench.on_way().len());
        // What it waits for comes, and nothing before it is needed.
        if waits(&read) {
            bench.deliver(chunk);
        }
        assert_eq!(answered(&read).unwrap(), content(chunk));
        assert!(bench.on_way().len() as u64 * 4 <= WINDOW + REQUEST, "{:?} at {chunk}", bench.on_way());
    }
    assert!(most as u64 * 4 >= WINDOW * 3 / 4, "{most} chunks at most");
}

#[test]
fn a_reader_that_leaps_has_nothing_ordered_but_what_comes_along() {
    let bench = Bench::reading_ahead(1 << 20);
    for leap in 0..40 {
        let (chunk, before) = (leap * 37 % 200, bench.worker.ordered().len());
        let read = bench.read(&[chunk]);
        let ordered = bench.ordered_since(before);
        assert!(ordered.len() as u64 * 4 <= REQUEST, "{ordered:?} for {chunk}");
        bench.deliver_all();
        assert_eq!(answered(&read).unwrap(), content(chunk));
    }
}

#[test]
fn who_reads_a_file_here_and_there_has_less_than_as_much_again_ordered() {
    let bench = Bench::reading_ahead(1 << 20);
    // Files of five chunks in a row.
    let files = [0, 160, 40, 120, 80];
    for chunk in files.into_iter().flat_map(|first| first..first + 5) {
        let read = bench.read(&[chunk]);
        bench.deliver_all();
        assert_eq!(answered(&read).unwrap(), content(chunk));
    }
    let ordered = bench.worker.ordered().len();
    assert!(ordered < files.len() * 2 * 5, "{ordered} chunks");
}

#[test]
fn all_readers_of_a_blob_together_have_no_more_under_way_than_may_be() {
    // The worker counts in such units, and so each request for one.
    const REQUESTS: u64 = 6;
    let bench = Bench::reading_ahead(REQUESTS * 1024);
    let firsts = [0, 50, 100, 150];
    let mut reads = Vec::new();
    for step in 0..20 {
        for first in firsts {
            let read = bench.read(&[first + step]);
            if waits(&read) {
                bench.deliver(first + step);
            }
            reads.push((first + step, read));
            let on_way = bench.on_way();
            // What readers wait for, and what comes along with that, goes before.
            let limit = (REQUESTS + firsts.len() as u64) * REQUEST;
            assert!(on_way.len() as u64 * 4 <= limit, "{on_way:?}");
        }
    }
    for (chunk, read) in reads {
        assert_eq!(answered(&read).unwrap(), content(chunk));
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
    assert_eq!(bench.worker.ordered(), (0..21).collect::<Vec<_>>());
}
