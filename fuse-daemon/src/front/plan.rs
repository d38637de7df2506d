//! Which ranges of a blob to fetch for chunks that are asked for: neighbours are fetched together, and a little more
//! than was asked for, since programs read on. A batch comes whole: wherever it is first read, it is fetched once.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ops::Range;

use rafs::blob::{Chunk, ChunkIndex};

use super::message::Extent;
use crate::cache::{CHUNK_BYTES_LIMIT, ChunkState};

/// What a member of a batch counts for at least, in bytes, where batches are held to the size that a batch can have: an
/// image may claim that all of its chunks are tiny and in one batch, and each costs memory.
const MEMBER_BYTES: u32 = 256;

/// How large requests get.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Stored bytes of a request that holds more than one extent.
    pub(super) request_bytes: u64,
    /// Uncompressed bytes of chunks that nobody has asked for, in one request: chunks of zeros compress to nothing.
    pub(super) ahead_uncompressed_bytes: u64,
}

impl Limits {
    /// Those of requests of so many stored bytes.
    pub(super) fn of(request_bytes: u64) -> Self {
        Self { request_bytes, ahead_uncompressed_bytes: request_bytes.saturating_mul(4) }
    }
}

/// Plans the requests for `demanded`, which is sorted: each is extents that start where the one before ends. `chunk` looks
/// a chunk up; `found` says what the cache has of one, unless somebody works on it or it failed.
pub(super) fn plan(
    demanded: &[(ChunkIndex, Chunk)],
    chunk: impl Fn(ChunkIndex) -> Option<Chunk>,
    found: impl Fn(ChunkIndex) -> Option<ChunkState>,
    limits: Limits,
) -> Vec<VecDeque<Extent>> {
    let mut requests = Vec::new();
    let mut rest = demanded;
    // Behind all that is planned.
    let mut next = ChunkIndex(0);
    while let Some((first, info)) = rest.first() {
        let mut extents = VecDeque::new();
        let mut ahead = 0;
        let mut together = stored_together(*first, info, next, &chunk);
        while let Some((extent, unasked)) = needed(&together, rest, &found) {
            ahead += unasked;
            if ahead > limits.ahead_uncompressed_bytes || !adjoins(&extents, &extent, limits) {
                break;
            }
            extents.push_back(extent);
            next = together.back().map_or(next, |(last, _)| ChunkIndex(last.0 + 1));
            rest = &rest[rest.partition_point(|(asked, _)| *asked < next)..];
            let Some(info) = chunk(next) else { break };
            together = stored_together(next, &info, next, &chunk);
        }
        requests.push(extents);
    }
    requests
}

/// The chunks, in order and none below `least`, that are stored in the same bytes as the one at `at`: it alone, or the
/// whole batch, whose members follow each other.
fn stored_together(
    at: ChunkIndex,
    info: &Chunk,
    least: ChunkIndex,
    chunk: impl Fn(ChunkIndex) -> Option<Chunk>,
) -> VecDeque<(ChunkIndex, Chunk)> {
    let mut together = VecDeque::from([(at, info.clone())]);
    let Some(batch) = info.batch else { return together };
    let mut room = CHUNK_BYTES_LIMIT.saturating_sub(info.uncompressed_size);
    let mut member = |index| {
        let found = chunk(ChunkIndex(index))?;
        if found.batch?.index != batch.index || stored(&found) != stored(info) {
            return None;
        }
        room = room.checked_sub(found.uncompressed_size.max(MEMBER_BYTES))?;
        Some((ChunkIndex(index), found))
    };
    for before in (least.0..at.0).rev().map_while(&mut member) {
        together.push_front(before);
    }
    together.extend((at.0.saturating_add(1)..u32::MAX).map_while(&mut member));
    together
}

/// What has to be fetched of chunks that are stored together, and its uncompressed bytes if nobody asked for any: `None`
/// if it is all there. With a chunk that is fetched all that comes with it is taken, so that it need not come again.
fn needed(
    together: &VecDeque<(ChunkIndex, Chunk)>,
    asked: &[(ChunkIndex, Chunk)],
    found: impl Fn(ChunkIndex) -> Option<ChunkState>,
) -> Option<(Extent, u64)> {
    let (mut demanded, mut missing) = (false, false);
    let mut chunks = Vec::new();
    for (index, chunk) in together {
        let is_asked = asked.binary_search_by_key(index, |(asked, _)| *asked).is_ok();
        let found = if is_asked { None } else { found(*index) };
        demanded |= is_asked;
        missing |= found == Some(ChunkState::Missing);
        if is_asked || matches!(found, Some(ChunkState::Missing | ChunkState::Claimed)) {
            chunks.push((*index, chunk.clone()));
        }
    }
    let (_, first) = chunks.first().filter(|_| demanded || missing)?;
    let sizes = chunks.iter().map(|(_, chunk)| u64::from(chunk.uncompressed_size));
    let unasked = if demanded { 0 } else { sizes.sum() };
    Some((Extent { stored: stored(first), chunks }, unasked))
}

/// Whether an extent goes into the same request as those before it.
fn adjoins(before: &VecDeque<Extent>, extent: &Extent, limits: Limits) -> bool {
    let (Some(first), Some(last)) = (before.front(), before.back()) else { return true };
    last.stored.end == extent.stored.start && extent.stored.end - first.stored.start <= limits.request_bytes
}

fn stored(chunk: &Chunk) -> Range<u64> {
    chunk.compressed_offset..chunk.compressed_offset.saturating_add(u64::from(chunk.compressed_size))
}
