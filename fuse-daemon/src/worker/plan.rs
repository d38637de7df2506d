//! Which ranges of a blob to fetch for chunks that are asked for: neighbours are fetched together, and a little more
//! than was asked for, since programs read on.

use std::collections::VecDeque;
use std::ops::Range;

use rafs::blob::{Chunk, ChunkIndex};

/// How large requests get.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Stored bytes of a request that holds more than one extent.
    pub(super) request_bytes: u64,
    /// Uncompressed bytes of chunks that nobody has asked for, in one request: chunks of zeros compress to nothing.
    pub(super) ahead_uncompressed_bytes: u64,
}

/// Stored bytes that are decoded as one: of one chunk, or of a batch of them.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    /// Where the stored bytes are in the blob.
    pub(super) stored: Range<u64>,
    /// The chunks in them that are wanted.
    pub(super) chunks: Vec<(ChunkIndex, Chunk)>,
}

/// Extents, each of which starts where the one before it ends: one request.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) extents: VecDeque<Extent>,
}

impl Request {
    /// The bytes of the blob.
    pub(super) fn stored(&self) -> Range<u64> {
        let start = self.extents.front().map_or(0, |extent| extent.stored.start);
        let end = self.extents.back().map_or(start, |extent| extent.stored.end);
        start..end
    }
}

/// Plans the requests for `demanded`, which is sorted. `chunk` looks a chunk up; `wanted` says of others whether they
/// are missing.
pub(super) fn plan(
    demanded: &[(ChunkIndex, Chunk)],
    chunk: impl Fn(ChunkIndex) -> Option<Chunk>,
    wanted: impl Fn(ChunkIndex) -> bool,
    limits: Limits,
) -> Vec<Request> {
    let mut requests = Vec::new();
    let mut rest = demanded;
    while let Some(((first, info), behind)) = rest.split_first() {
        let mut extents =
            VecDeque::from([Extent { stored: stored(info), chunks: vec![(*first, info.clone())] }]);
        rest = behind;
        let mut ahead = 0;
        for index in (first.0..u32::MAX).map(|index| ChunkIndex(index + 1)) {
            let asked = rest.first().filter(|(next, _)| *next == index);
            let info = match asked {
                Some((_, info)) => Some(info.clone()),
                None if wanted(index) => chunk(index),
                None => None,
            };
            let Some(info) = info else { break };
            let size = if asked.is_some() { 0 } else { u64::from(info.uncompressed_size) };
            if ahead + size > limits.ahead_uncompressed_bytes || !append(&mut extents, index, info, limits) {
                break;
            }
            ahead += size;
            if asked.is_some() {
                rest = &rest[1..];
            }
        }
        requests.push(Request { extents });
    }
    requests
}

/// Adds a chunk to a request if it adjoins and fits.
fn append(extents: &mut VecDeque<Extent>, index: ChunkIndex, chunk: Chunk, limits: Limits) -> bool {
    let stored = stored(&chunk);
    let start = extents.front().map_or(stored.start, |first| first.stored.start);
    let Some(last) = extents.back_mut() else { return false };
    if chunk.batch.is_some() && last.stored == stored {
        last.chunks.push((index, chunk));
        return true;
    }
    if last.stored.end != stored.start || stored.end - start > limits.request_bytes {
        return false;
    }
    extents.push_back(Extent { stored, chunks: vec![(index, chunk)] });
    true
}

fn stored(chunk: &Chunk) -> Range<u64> {
    chunk.compressed_offset..chunk.compressed_offset.saturating_add(u64::from(chunk.compressed_size))
}
