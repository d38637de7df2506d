//! How far to read ahead of readers that go through a blob in order, file after file: the further the longer they do, and the
//! further away the blob is, so that several requests are under way where each takes a while. Who reads here and there costs
//! nothing more.
//!
//! ```text
//!        begin      since                   mark            next
//!   ───────┼──────────┼───────────────────────┼───────────────┼──────────> chunks of the blob
//!          └ may go back so far    reads come here: order more  └ ordered up to here
//! ```
//!
//! What is there already counts as read too. A reader that never has to wait would otherwise have nothing more ordered, and
//! wait at the end of it for the whole time of an answer.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use rafs::blob::ChunkIndex;

use crate::cache::Generation;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Readers of one blob that are told apart; of more, those that came last.
const READERS: usize = 8;

/// Blobs whose readers are remembered at most; beyond, all are forgotten, at the price of starting small again.
const BLOBS: usize = 1024;

/// Who reads fewer than one in so many of the chunks that it passes does not go through the blob in order.
const SPARSE: u32 = 2;

/// A reader that goes through a blob.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Reader {
    /// Chunks from here on are taken for its own: directories are not read in just the order in which they are stored.
    begin: ChunkIndex,
    /// Where it was when more was last ordered.
    since: ChunkIndex,
    /// Chunks that it has read since then.
    read: u32,
    /// The last of them.
    last: ChunkIndex,
    /// When it comes here it is to have more ordered.
    mark: ChunkIndex,
    /// Where what was ordered for it ends.
    next: ChunkIndex,
    /// Stored bytes that were to be ahead of it.
    window: u64,
}

/// How much is ahead of a reader in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    /// Stored bytes of one that has just begun.
    pub(super) first: u64,
    /// Stored bytes at least, once it has gone on.
    pub(super) least: u64,
    /// Stored bytes at most.
    pub(super) most: u64,
    /// How many times as much it is each time that more is ordered, …
    pub(super) growth: u64,
    /// … up to so many stored bytes: from there on it is a quarter more, so that who stops after long has had less than half as much
    /// fetched in vain as he has read.
    pub(super) growth_until: u64,
}

impl Reach {
    /// Stored bytes for a reader that has just begun.
    fn first(self) -> u64 {
        self.first.min(self.most)
    }

    /// Stored bytes for one that has gone on, and had so many.
    fn next(self, window: u64) -> u64 {
        let grown = if window < self.growth_until {
            window.saturating_mul(self.growth).min(self.growth_until)
        } else {
            window.saturating_add(window / 4)
        };
        grown.max(self.least).min(self.most)
    }
}

/// What to order beyond what a reader waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Further {
    /// It comes from elsewhere: nothing ahead of it.
    Begins,
    /// It has enough ahead of it, or does not go on in order.
    Nothing,
    /// It goes on.
    From {
        /// The first chunk.
        from: ChunkIndex,
        /// Stored bytes that are to be ahead of the reader, those before `from` included.
        window: u64,
    },
}

/// Stored bytes of an order that are on their way, until this is dropped.
#[derive(Debug)]
pub(super) struct OnWay {
    of_blob: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for OnWay {
    fn drop(&mut self) {
        self.of_blob.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct OfBlob {
    /// The one that read last is the first.
    readers: VecDeque<Reader>,
    on_way: Arc<AtomicU64>,
}

/// The readers of all blobs.
#[derive(Debug, Default)]
pub(super) struct Streams(HashMap<Generation, OfBlob>);

impl Streams {
    /// Somebody reads `chunk`; whether more is to be ordered for that.
    pub(super) fn reads(&mut self, blob: Generation, chunk: ChunkIndex) -> bool {
        let Some(reader) = self.reader(blob, chunk) else { return false };
        // Of one chunk there may be many reads.
        reader.read = reader.read.saturating_add(u32::from(reader.last != chunk));
        reader.last = chunk;
        chunk >= reader.mark
    }

    /// A reader waits for `chunk`, or comes to where more is to be ordered; what is ordered for it so far ends before `end`.
    pub(super) fn further(
        &mut self,
        blob: Generation,
        chunk: ChunkIndex,
        end: ChunkIndex,
        reach: Reach,
    ) -> Further {
        let Some(reader) = self.reader(blob, chunk) else {
            self.begins(blob, chunk, end, reach.first());
            return Further::Begins;
        };
        let is_at_end = chunk >= reader.next;
        reader.next = reader.next.max(end);
        if chunk < reader.mark {
            return Further::Nothing;
        }
        let passed = chunk.0.saturating_sub(reader.since.0);
        if reader.read.saturating_mul(SPARSE) < passed {
            // It may come back for what it has left out, until it has gone beyond all that was ordered.
            if is_at_end {
                *reader = begun(chunk, reader.next, reach.first());
            }
            return Further::Nothing;
        }
        reader.begin = reader.since;
        (reader.since, reader.read) = (chunk, 0);
        reader.window = reach.next(reader.window);
        Further::From { from: reader.next, window: reader.window }
    }

    /// What was ordered further for the reader of `chunk` ends before `next`; it is to have more ordered when it comes to `mark`.
    pub(super) fn ordered(
        &mut self,
        blob: Generation,
        chunk: ChunkIndex,
        mark: ChunkIndex,
        next: ChunkIndex,
    ) {
        if let Some(reader) = self.reader(blob, chunk) {
            reader.next = reader.next.max(next);
            reader.mark = mark.max(ChunkIndex(chunk.0.saturating_add(1)));
        }
    }

    /// The reader of `chunk` has come to the end of the blob.
    pub(super) fn ended(&mut self, blob: Generation, chunk: ChunkIndex) {
        if let Some(of_blob) = self.0.get_mut(&blob) {
            of_blob.readers.retain(|reader| !reader.is_at(chunk));
        }
    }

    /// Stored bytes of a blob that are on their way.
    pub(super) fn on_way(&self, blob: Generation) -> u64 {
        self.0.get(&blob).map_or(0, |of_blob| of_blob.on_way.load(Ordering::Relaxed))
    }

    /// So many more are.
    pub(super) fn sets_out(&mut self, blob: Generation, bytes: u64) -> OnWay {
        let of_blob = Arc::clone(&self.of_blob(blob).on_way);
        of_blob.fetch_add(bytes, Ordering::Relaxed);
        OnWay { of_blob, bytes }
    }

    /// The reader that `chunk` belongs to, which is the one that read last from now on.
    fn reader(&mut self, blob: Generation, chunk: ChunkIndex) -> Option<&mut Reader> {
        let readers = &mut self.0.get_mut(&blob)?.readers;
        let known = readers.iter().position(|reader| reader.is_at(chunk))?;
        if known > 0 {
            let reader = readers.remove(known)?;
            readers.push_front(reader);
        }
        readers.front_mut()
    }

    fn begins(&mut self, blob: Generation, chunk: ChunkIndex, next: ChunkIndex, window: u64) {
        let readers = &mut self.of_blob(blob).readers;
        readers.push_front(begun(chunk, next, window));
        readers.truncate(READERS);
    }

    fn of_blob(&mut self, blob: Generation) -> &mut OfBlob {
        if self.0.len() >= BLOBS && !self.0.contains_key(&blob) {
            self.0.clear();
        }
        self.0.entry(blob).or_default()
    }
}

impl Reader {
    fn is_at(&self, chunk: ChunkIndex) -> bool {
        (self.begin..=self.next).contains(&chunk)
    }
}

/// A reader that was not known before, or has not gone on in order; what is ordered for it ends before `next`.
fn begun(chunk: ChunkIndex, next: ChunkIndex, window: u64) -> Reader {
    let half = next.0.saturating_sub(chunk.0) / 2;
    let mark = ChunkIndex(chunk.0.saturating_add(half.max(1)));
    Reader { begin: chunk, since: chunk, read: 0, last: chunk, mark, next: next.max(mark), window }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOB: Generation = Generation(1);
    /// Stored bytes of each chunk.
    const CHUNK: u64 = 100;
    const REACH: Reach =
        Reach { first: CHUNK, least: CHUNK, most: 16 * CHUNK, growth: 2, growth_until: u64::MAX };

    fn read(streams: &mut Streams, chunk: u32, waits: bool) -> Option<u64> {
        read_of(streams, chunk, waits, REACH)
    }

    /// A reader that waits for a chunk, or finds it: what is to be ahead of it then, in chunks. Orders are of one chunk.
    fn read_of(streams: &mut Streams, chunk: u32, waits: bool, reach: Reach) -> Option<u64> {
        let is_due = streams.reads(BLOB, ChunkIndex(chunk));
        if !is_due && !waits {
            return None;
        }
        let end = ChunkIndex(chunk + 1);
        let further = streams.further(BLOB, ChunkIndex(chunk), end, reach);
        let Further::From { from, window } = further else { return None };
        let next = (chunk + 1 + (window / CHUNK) as u32).max(from.0);
        let mark = next.saturating_sub((window / CHUNK / 2) as u32);
        streams.ordered(BLOB, ChunkIndex(chunk), ChunkIndex(mark), ChunkIndex(next));
        Some(window / CHUNK)
    }

    /// What is ahead of a reader at most that waits for these chunks one after the other.
    fn most(streams: &mut Streams, chunks: impl IntoIterator<Item = u32>) -> u64 {
        chunks.into_iter().filter_map(|chunk| read(streams, chunk, true)).max().unwrap_or_default()
    }

    #[test]
    fn a_reader_that_goes_on_has_more_and_more_ahead_of_it_up_to_a_limit() {
        let mut streams = Streams::default();
        let windows: Vec<u64> = (0..100).filter_map(|chunk| read(&mut streams, chunk, true)).collect();
        assert_eq!(windows[..4], [2, 4, 8, 16]);
        assert!(windows[4..].iter().all(|window| *window == 16), "{windows:?}");
        // Not with each chunk: when half of it has been read.
        assert!(windows.len() < 20, "{windows:?}");
    }

    #[test]
    fn what_is_ahead_grows_as_much_as_is_said() {
        let mut streams = Streams::default();
        let reach = Reach { growth: 4, most: 64 * CHUNK, ..REACH };
        let windows = (0..200).filter_map(|chunk| read_of(&mut streams, chunk, true, reach));
        assert_eq!(windows.take(4).collect::<Vec<_>>(), [4, 16, 64, 64]);
        let mut streams = Streams::default();
        let reach = Reach { least: 10 * CHUNK, ..reach };
        let windows = (0..200).filter_map(|chunk| read_of(&mut streams, chunk, true, reach));
        assert_eq!(windows.take(3).collect::<Vec<_>>(), [10, 40, 64]);
    }

    #[test]
    fn from_some_size_on_what_is_ahead_grows_slowly() {
        let mut streams = Streams::default();
        let reach = Reach { growth_until: 8 * CHUNK, most: 14 * CHUNK, ..REACH };
        let windows = (0..200).filter_map(|chunk| read_of(&mut streams, chunk, true, reach));
        assert_eq!(windows.take(7).collect::<Vec<_>>(), [2, 4, 8, 10, 12, 14, 14]);
    }

    #[test]
    fn who_finds_all_that_was_ordered_has_more_ordered_too() {
        let mut streams = Streams::default();
        assert_eq!(most(&mut streams, 0..2), 2);
        let windows: Vec<u64> = (2..40).filter_map(|chunk| read(&mut streams, chunk, false)).collect();
        assert_eq!(windows[..3], [4, 8, 16]);
    }

    #[test]
    fn who_waits_for_each_chunk_that_is_on_its_way_stays_one_reader() {
        let mut streams = Streams::default();
        most(&mut streams, 0..200);
        assert_eq!(streams.0[&BLOB].readers.len(), 1);
    }

    #[test]
    fn who_reads_here_and_there_costs_nothing_more() {
        let mut streams = Streams::default();
        assert_eq!(most(&mut streams, [500, 20, 300, 90, 10_000, 7]), 0);
        // Nor does one that leaps through what was ordered for it.
        assert_eq!(most(&mut streams, 1000..1040), 16);
        let leaps: Vec<u64> = (0..6).filter_map(|leap| read(&mut streams, 1039 + 8 * leap, true)).collect();
        assert!(leaps.iter().sum::<u64>() <= 16, "{leaps:?}");
    }

    #[test]
    fn one_that_begins_to_leap_and_reads_on_then_begins_small() {
        let mut streams = Streams::default();
        assert_eq!(most(&mut streams, 0..40), 16);
        let next = streams.0[&BLOB].readers[0].next.0;
        assert_eq!(read(&mut streams, next, true), None, "it has left out most of what was ordered");
        assert_eq!(read(&mut streams, next + 1, true), Some(2));
    }

    #[test]
    fn directories_may_be_read_in_another_order_than_they_are_stored() {
        let mut streams = Streams::default();
        assert_eq!(most(&mut streams, 0..42), 16);
        // Always the second three of six before the first.
        let turned = (42..198).map(|chunk| if chunk / 3 % 2 == 0 { chunk + 3 } else { chunk - 3 });
        let windows: Vec<u64> = turned.filter_map(|chunk| read(&mut streams, chunk, false)).collect();
        assert!(windows.len() > 5 && windows.iter().all(|window| *window == 16), "{windows:?}");
    }

    #[test]
    fn readers_of_one_blob_are_told_apart() {
        let mut streams = Streams::default();
        let chunks = (0..40).flat_map(|chunk| [chunk, 1000 + chunk]);
        let windows: Vec<u64> = chunks.filter_map(|chunk| read(&mut streams, chunk, true)).collect();
        assert_eq!(windows[..8], [2, 2, 4, 4, 8, 8, 16, 16]);
    }

    #[test]
    fn a_limit_that_shrinks_holds_at_once() {
        let mut streams = Streams::default();
        assert_eq!(most(&mut streams, 0..40), 16);
        let next = (40..100).find(|chunk| streams.reads(BLOB, ChunkIndex(*chunk))).unwrap();
        let reach = Reach { most: 4 * CHUNK, ..REACH };
        let further = streams.further(BLOB, ChunkIndex(next), ChunkIndex(next), reach);
        assert!(matches!(further, Further::From { window, .. } if window == 4 * CHUNK), "{further:?}");
    }

    #[test]
    fn what_is_on_its_way_is_counted_until_it_is_there() {
        let mut streams = Streams::default();
        let orders = [streams.sets_out(BLOB, 10), streams.sets_out(BLOB, 20)];
        assert_eq!((streams.on_way(BLOB), streams.on_way(Generation(2))), (30, 0));
        drop(orders);
        assert_eq!(streams.on_way(BLOB), 0);
    }
}
