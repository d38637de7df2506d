//! Where a worker in a process of its own reports to: chunks go into the shared memory, and the front is told where they are.

use std::sync::Arc;

use super::message::{ChunkFailure, FromWorker, clip};
use super::wire::Sender;
use crate::front::{ArrivedChunk, BackendName, ChunkError, ChunkKey, Content, Responses};
use crate::sys::Arena;

/// Bytes of chunks that are told of together, except for a chunk that is larger.
const WINDOW_BYTES: usize = 256 << 10;

/// Chunks that are.
const WINDOW_CHUNKS: usize = 256;

/// See the module.
pub(super) struct Report {
    pub(super) arena: Arc<Arena>,
    pub(super) sender: Arc<Sender>,
}

impl Report {
    fn fail(&self, key: ChunkKey, failure: ChunkFailure) {
        self.sender.send(&FromWorker::Failed { chunk: key.into(), failure }, None);
    }

    /// Decodes chunks into one window, and tells of them.
    fn deliver(&self, from: &BackendName, arrivals: Vec<ArrivedChunk<'_>>) {
        let Some(first) = arrivals.first().map(|first| first.chunk) else { return };
        let len = arrivals.iter().map(|arrival| arrival.len).sum();
        let Some(mut window) = self.arena.take(len) else {
            let too_large = || ChunkFailure::Fetch { reason: format!("a chunk of {len} bytes is too large") };
            return arrivals.iter().for_each(|arrival| self.fail(arrival.chunk, too_large()));
        };
        let (mut end, mut chunks) = (0, Vec::with_capacity(arrivals.len()));
        for ArrivedChunk { chunk, len, mut fill } in arrivals {
            match fill(&mut window[end..end + len]) {
                Ok(()) => {
                    end += len;
                    chunks.push((chunk.chunk.0, u32::try_from(len).unwrap_or(u32::MAX)));
                }
                Err(reason) => {
                    let failure = ChunkFailure::Corrupt { from: from.to_string(), reason: clip(&reason) };
                    self.fail(chunk, failure);
                }
            }
        }
        if chunks.is_empty() {
            return;
        }
        let at = window.hand_over() as u64;
        let (blob, generation) = (first.blob, first.generation.0);
        let delivered = FromWorker::Delivered { blob, generation, chunks, at, from: from.to_string() };
        self.sender.send(&delivered, None);
    }
}

impl Responses for Report {
    fn finished(&self, key: ChunkKey, outcome: Result<Content<'_>, ChunkError>) {
        match outcome {
            Ok(Content { bytes, from }) => {
                let copy = |memory: &mut [u8]| {
                    memory.copy_from_slice(bytes);
                    Ok(())
                };
                self.arrived(from, vec![ArrivedChunk { chunk: key, len: bytes.len(), fill: Box::new(copy) }]);
            }
            Err(error) => self.fail(key, error.into()),
        }
    }

    fn arrived(&self, from: &BackendName, mut arrivals: Vec<ArrivedChunk<'_>>) {
        while !arrivals.is_empty() {
            let rest = arrivals.split_off(fitting(&arrivals));
            self.deliver(from, arrivals);
            arrivals = rest;
        }
    }
}

/// How many of these go into the memory together: one at least.
fn fitting(arrivals: &[ArrivedChunk<'_>]) -> usize {
    let mut bytes = 0_usize;
    let fits = |arrival: &&ArrivedChunk<'_>| {
        bytes = bytes.saturating_add(arrival.len);
        bytes <= WINDOW_BYTES
    };
    arrivals.iter().take(WINDOW_CHUNKS).take_while(fits).count().max(1)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rafs::blob::ChunkIndex;
    use rafs::digest::Digest;

    use super::*;
    use crate::cache::Generation;
    use crate::control::BlobId;
    use crate::process::message::{FROM_WORKER_LIMIT, parse};
    use crate::process::wire::Receiver;
    use crate::sys::memory;

    const ARENA: usize = 1 << 20;

    fn key(chunk: u32) -> ChunkKey {
        let blob = BlobId(Digest([1; 32]));
        ChunkKey { blob, generation: Generation(3), chunk: ChunkIndex(chunk) }
    }

    /// What is told of chunks of these sizes, of which those of 13 bytes cannot be decoded.
    fn told(sizes: &[usize]) -> Vec<FromWorker> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let arena = Arena::map(memory("report test", ARENA as u64).unwrap(), ARENA).unwrap();
        let report = Report { arena, sender: Arc::new(Sender::new(Arc::new(ours))) };
        let arrival = |(chunk, len): (usize, &usize)| {
            let fill = |bytes: &mut [u8]| if bytes.len() == 13 { Err("broken".to_owned()) } else { Ok(()) };
            ArrivedChunk { chunk: key(chunk as u32), len: *len, fill: Box::new(fill) }
        };
        report.arrived(&"somebody".into(), sizes.iter().enumerate().map(arrival).collect());
        drop(report);
        let mut receiver = Receiver::new(Arc::new(theirs), FROM_WORKER_LIMIT, false);
        std::iter::from_fn(|| receiver.next().unwrap()).map(|message| parse(&message).unwrap()).collect()
    }

    fn delivered(chunks: &[(u32, u32)], at: u64) -> FromWorker {
        let ChunkKey { blob, generation, .. } = key(0);
        let (chunks, from) = (chunks.to_vec(), "somebody".to_owned());
        FromWorker::Delivered { blob, generation: generation.0, chunks, at, from }
    }

    #[test]
    fn chunks_that_arrive_together_are_told_of_together_up_to_a_limit() {
        let half = WINDOW_BYTES / 2;
        let sizes = [10, half, half - 10, 1, 3 * half, 20];
        let (half, large) = (half as u32, 3 * half as u32);
        let behind = WINDOW_BYTES as u64;
        let expected = [
            delivered(&[(0, 10), (1, half), (2, half - 10)], 0),
            delivered(&[(3, 1)], behind),
            delivered(&[(4, large)], behind + 4096),
            delivered(&[(5, 20)], behind + 4096 + u64::from(large)),
        ];
        assert_eq!(told(&sizes), expected);
        assert_eq!(told(&vec![1; WINDOW_CHUNKS + 1]).len(), 2);
    }

    #[test]
    fn one_that_cannot_be_decoded_takes_no_other_with_it() {
        let failure = ChunkFailure::Corrupt { from: "somebody".to_owned(), reason: "broken".to_owned() };
        let failed = |chunk| FromWorker::Failed { chunk: key(chunk).into(), failure: failure.clone() };
        assert_eq!(told(&[10, 13, 30]), [failed(1), delivered(&[(0, 10), (2, 30)], 0)]);
        assert_eq!(told(&[13]), [failed(0)]);
    }

    #[test]
    fn one_that_the_memory_is_too_small_for_is_told_of_as_failed() {
        let told = told(&[ARENA + 1, 10]);
        assert!(matches!(told[0], FromWorker::Failed { .. }), "{told:?}");
        assert_eq!(told[1], delivered(&[(1, 10)], 0));
    }
}
