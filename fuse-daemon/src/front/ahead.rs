//! How far to read ahead of readers that go through a blob in order: the further the longer they do, so that several
//! requests are under way at once where each takes a while, and who reads here and there costs nothing more.

use std::collections::{HashMap, VecDeque};

use rafs::blob::ChunkIndex;

use crate::cache::Generation;

/// Requests that are ordered at once ahead of a reader at most.
const WINDOW_MAX: u32 = 8;

/// Readers of one blob that are told apart; of more, those that came last.
const STREAMS: usize = 8;

/// Blobs whose readers are remembered at most; beyond, all are forgotten, at the price of starting small again.
const BLOBS: usize = 1024;

/// A reader that goes through a blob.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stream {
    /// Where what was ordered last begins: a reader that comes there is to have more ordered.
    mark: ChunkIndex,
    /// Where it ends.
    next: ChunkIndex,
    /// Requests that were ordered last.
    window: u32,
}

/// What to order beyond what a reader waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Further {
    /// The first chunk.
    pub(super) from: ChunkIndex,
    /// How many requests.
    pub(super) requests: u32,
}

/// The readers of all blobs.
#[derive(Debug, Default)]
pub(super) struct Streams(HashMap<Generation, VecDeque<Stream>>);

impl Streams {
    /// A reader waits for `chunk`, and what is ordered for it ends before `next`.
    pub(super) fn waits(&mut self, blob: Generation, chunk: ChunkIndex, next: ChunkIndex) -> Option<Further> {
        if self.0.len() >= BLOBS && !self.0.contains_key(&blob) {
            self.0.clear();
        }
        let streams = self.0.entry(blob).or_default();
        let known = streams.iter().position(|stream| (stream.mark..=stream.next).contains(&chunk));
        let Some(mut stream) = known.and_then(|position| streams.remove(position)) else {
            streams.push_front(Stream { mark: next, next, window: 1 });
            streams.truncate(STREAMS);
            return None;
        };
        let from = stream.next.max(next);
        stream = Stream { mark: from, next: from, window: (stream.window * 2).min(WINDOW_MAX) };
        streams.push_front(stream);
        Some(Further { from, requests: stream.window })
    }

    /// What was ordered further for the reader that waited last ends before `next`.
    pub(super) fn ordered(&mut self, blob: Generation, next: ChunkIndex) {
        if let Some(stream) = self.0.get_mut(&blob).and_then(VecDeque::front_mut) {
            stream.next = stream.next.max(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOB: Generation = Generation(1);

    /// Requests that are ordered further when a reader waits for these chunks one after the other, each of four chunks.
    fn further(streams: &mut Streams, chunks: &[u32]) -> Vec<u32> {
        let wait = |chunk: &u32| {
            let found = streams.waits(BLOB, ChunkIndex(*chunk), ChunkIndex(chunk + 4));
            let Some(Further { from, requests }) = found else { return 0 };
            streams.ordered(BLOB, ChunkIndex(from.0 + 4 * requests));
            requests
        };
        chunks.iter().map(wait).collect()
    }

    #[test]
    fn a_reader_that_goes_on_has_more_and_more_ordered_up_to_a_limit() {
        // Behind all that was ordered each time.
        assert_eq!(further(&mut Streams::default(), &[0, 4, 16, 36, 72]), [0, 2, 4, 8, 8]);
    }

    #[test]
    fn a_reader_that_comes_to_the_last_of_it_has_the_next_ordered_before_it_waits() {
        let mut streams = Streams::default();
        assert_eq!(further(&mut streams, &[0, 4]), [0, 2]);
        // Within what was ordered last, 8 to 15.
        assert_eq!(streams.waits(BLOB, ChunkIndex(9), ChunkIndex(9)).unwrap().from, ChunkIndex(16));
    }

    #[test]
    fn who_reads_here_and_there_costs_nothing_more() {
        assert_eq!(further(&mut Streams::default(), &[500, 20, 300, 90, 10_000, 7]), [0; 6]);
    }

    #[test]
    fn readers_of_one_blob_are_told_apart() {
        assert_eq!(further(&mut Streams::default(), &[0, 1000, 4, 1004, 16, 1016]), [0, 0, 2, 2, 4, 4]);
    }
}
