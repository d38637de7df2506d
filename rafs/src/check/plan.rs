//! In which order a blob's chunks are met when its stream is gone through.

use super::Report;
use crate::blob::ChunkIndex;

/// Where a chunk's bytes are in the stream: of a batch member, those of the whole batch.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Stored {
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) is_member: bool,
    pub(super) index: ChunkIndex,
}

impl Stored {
    pub(super) fn end(&self) -> u64 {
        self.offset + u64::from(self.size)
    }
}

/// The chunks in order of the stream. None overlaps another, except for the members of a batch: work grows with the stream, and
/// not with what is said of it.
pub(super) struct Plan {
    pub(super) chunks: Vec<Stored>,
}

/// What findings of a chunk are about. The number is padded, so that they sort.
pub(super) fn subject(blob: &str, chunk: ChunkIndex) -> String {
    format!("{blob}, chunk {:>8}", chunk.0)
}

impl Plan {
    /// Leaves out, with a finding, what is not in the stream of `size` bytes and what overlaps.
    pub(super) fn new(blob: &str, mut chunks: Vec<Stored>, size: u64, report: &mut Report) -> Self {
        chunks.sort_unstable();
        let mut last: Option<Stored> = None;
        chunks.retain(|chunk| {
            let problem = if chunk.end() > size {
                format!("its stored bytes end at {}; the blob has {size} bytes", chunk.end())
            } else if let Some(last) = last.filter(|last| {
                chunk.offset < last.end()
                    && !(chunk.is_member
                        && last.is_member
                        && (chunk.offset, chunk.size) == (last.offset, last.size))
            }) {
                let (start, end) = (chunk.offset, chunk.end());
                format!("its stored bytes from {start} to {end} overlap those of chunk {}", last.index.0)
            } else {
                last = Some(*chunk);
                return true;
            };
            report.add(subject(blob, chunk.index), problem);
            false
        });
        Self { chunks }
    }
}
