//! What is known of a blob's chunks: where each lies, uncompressed and stored, and what it holds.
//!
//! A blob is shared by all images that name it, so what a chunk is belongs to the blob, not to an image. Each image that
//! is mounted adds what its bootstrap says; what several say has to agree, and they complete each other, since a bootstrap
//! describes only chunks that its image uses. What images said that are gone is remembered, for it is what cached bytes
//! were verified against, but it binds nobody: where an image says otherwise it gives way.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use rafs::blob::{Blob, Chunk, ChunkIndex};

/// The format's largest chunk. Compressed ones are smaller: what does not shrink is stored as it is.
pub const CHUNK_BYTES_LIMIT: u32 = rafs::layout::CHUNK_SIZE_LIMIT;

/// A chunk and what an image says of it.
pub type Said = (ChunkIndex, Chunk);

/// What is known of one chunk.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Record {
    pub(super) index: ChunkIndex,
    pub(super) chunk: Chunk,
    /// Mounts whose images say so; 0: only images that are gone did.
    mounts: u32,
}

impl Record {
    /// As an image said that is gone.
    pub(super) fn of_gone(index: ChunkIndex, chunk: Chunk) -> Self {
        Self { index, chunk, mounts: 0 }
    }

    fn end(&self) -> u64 {
        end(&self.chunk)
    }
}

/// What is needed to fetch a chunk and to tell whether it is right.
#[derive(Clone, Debug)]
pub struct Described {
    /// How the blob's chunks are coded: compressor, digest algorithm and chunk size. It has no chunks.
    pub coding: Arc<Blob>,
    /// The chunk.
    pub chunk: Chunk,
}

/// All that is known of a blob's chunks.
#[derive(Debug, Default)]
pub(super) struct Descriptions {
    /// How chunks are coded. `None` until an image says it.
    pub(super) coding: Option<Arc<Blob>>,
    /// In order of index.
    records: Vec<Record>,
    /// Positions in `records`, in order of place.
    by_offset: Vec<u32>,
}

/// How an image's words were taken.
#[derive(Debug)]
pub(super) enum Admission {
    /// All of it was known.
    Known,
    /// Something was new.
    Added,
    /// It contradicts images that are gone: these chunks, all that only they described, are described no longer.
    Displaced(Vec<ChunkIndex>),
}

impl Descriptions {
    /// What was said by images that are gone, in order of index; `None` if it contradicts itself.
    pub(super) fn of_gone(coding: Option<Arc<Blob>>, records: Vec<Record>) -> Option<Self> {
        if !records.is_sorted_by(|one, other| one.index < other.index) {
            return None;
        }
        let by_offset = in_order_of_place(&records).ok()?;
        Some(Self { coding, records, by_offset })
    }

    pub(super) fn records(&self) -> &[Record] {
        &self.records
    }

    /// What an image that is mounted says of the chunk.
    pub(super) fn live(&self, index: ChunkIndex) -> Option<&Chunk> {
        self.find(index).filter(|record| record.mounts > 0).map(|record| &record.chunk)
    }

    /// What is known of the chunk, if only by images that are gone.
    pub(super) fn known(&self, index: ChunkIndex) -> Option<&Chunk> {
        self.find(index).map(|record| &record.chunk)
    }

    fn find(&self, index: ChunkIndex) -> Option<&Record> {
        let position = self.records.binary_search_by_key(&index, |record| record.index).ok()?;
        self.records.get(position)
    }

    /// The chunks that lie, with at least a byte, in a range of the uncompressed blob.
    pub(super) fn within(&self, range: Range<u64>) -> impl Iterator<Item = &Record> {
        let records = self.by_offset.iter().map(|&position| &self.records[position as usize]);
        // No chunk overlaps another, so their ends are in the same order as their starts.
        let first =
            self.by_offset.partition_point(|&position| self.records[position as usize].end() <= range.start);
        records.skip(first).take_while(move |record| record.chunk.uncompressed_offset < range.end)
    }

    /// Where the last chunk ends in the uncompressed blob.
    pub(super) fn end(&self) -> u64 {
        self.by_offset.last().map_or(0, |&position| self.records[position as usize].end())
    }

    /// Takes an image's words, which are in order of index and agree with each other; the chunk on which it contradicts
    /// images that are mounted, if there is one: then nothing has changed.
    pub(super) fn admit(&mut self, coding: &Arc<Blob>, said: &[Said]) -> Result<Admission, ChunkIndex> {
        let Some((first, _)) = said.first() else { return Ok(Admission::Known) };
        let same_coding = self.coding.as_ref().is_none_or(|known| is_same_coding(known, coding));
        if same_coding && self.repeats(said) {
            return Ok(Admission::Known);
        }
        let all = if same_coding { merge(self.records.iter(), said) } else { Err(*first) };
        if let Ok((records, by_offset)) = all {
            *self = Self { coding: Some(Arc::clone(coding)), records, by_offset };
            return Ok(Admission::Added);
        }
        if !same_coding && self.records.iter().any(|record| record.mounts > 0) {
            return Err(*first);
        }
        let (records, by_offset) = merge(self.records.iter().filter(|record| record.mounts > 0), said)?;
        let gone =
            self.records.iter().filter(|record| record.mounts == 0).map(|record| record.index).collect();
        *self = Self { coding: Some(Arc::clone(coding)), records, by_offset };
        Ok(Admission::Displaced(gone))
    }

    /// Counts one more mount if all of this is known; the usual case, of an image that is mounted again.
    fn repeats(&mut self, said: &[Said]) -> bool {
        let known = |(index, chunk): &Said| self.known(*index) == Some(chunk);
        let all = said.iter().all(known);
        if all {
            self.count(said.iter().map(|(index, _)| *index), |mounts| mounts.saturating_add(1));
        }
        all
    }

    /// A mount that said something of these chunks is gone.
    pub(super) fn release(&mut self, indexes: impl Iterator<Item = ChunkIndex>) {
        self.count(indexes, |mounts| mounts.saturating_sub(1));
    }

    fn count(&mut self, indexes: impl Iterator<Item = ChunkIndex>, change: impl Fn(u32) -> u32) {
        let mut rest = self.records.as_mut_slice();
        for index in indexes {
            let position = rest.partition_point(|record| record.index < index);
            rest = &mut rest[position..];
            if let Some(record) = rest.first_mut().filter(|record| record.index == index) {
                record.mounts = change(record.mounts);
            }
        }
    }
}

/// The first chunk of an image's words, which are in order of index, that overlaps another of them with other bytes.
pub(super) fn contradiction(said: &[Said]) -> Option<ChunkIndex> {
    merge([].iter(), said).err()
}

fn end(chunk: &Chunk) -> u64 {
    chunk.uncompressed_offset.saturating_add(chunk.uncompressed_size.into())
}

/// Whether both are the same bytes at the same place, wherever they are stored.
pub(super) fn same_bytes(one: &Chunk, other: &Chunk) -> bool {
    (one.uncompressed_offset, one.uncompressed_size, one.digest)
        == (other.uncompressed_offset, other.uncompressed_size, other.digest)
}

/// Whether chunks that are stored alike decode alike.
fn is_same_coding(one: &Blob, other: &Blob) -> bool {
    std::mem::discriminant(&one.compressor) == std::mem::discriminant(&other.compressor)
        && (one.digester, one.chunk_size) == (other.digester, other.chunk_size)
}

/// Puts an image's words to those that are known; the chunk on which they contradict, if one does.
fn merge<'a>(
    known: impl Iterator<Item = &'a Record>,
    said: &[Said],
) -> Result<(Vec<Record>, Vec<u32>), ChunkIndex> {
    let mut known = known.peekable();
    let mut records = Vec::with_capacity(known.size_hint().1.unwrap_or(0).max(said.len()));
    for (index, chunk) in said {
        while let Some(before) = known.next_if(|record| record.index < *index) {
            records.push(before.clone());
        }
        let mut mounts = 1;
        if let Some(record) = known.next_if(|record| record.index == *index) {
            // Where the bytes are stored, a mounted image has to agree; of one that is gone, the bytes alone matter.
            let agrees = record.chunk == *chunk || (record.mounts == 0 && same_bytes(&record.chunk, chunk));
            if !agrees {
                return Err(*index);
            }
            mounts += record.mounts;
        }
        records.push(Record { index: *index, chunk: chunk.clone(), mounts });
    }
    records.extend(known.cloned());
    let by_offset = in_order_of_place(&records)?;
    Ok((records, by_offset))
}

/// Positions in order of place; a chunk that overlaps another, unless both are the same bytes.
fn in_order_of_place(records: &[Record]) -> Result<Vec<u32>, ChunkIndex> {
    // Chunk indexes have 24 bits, so there are no more.
    let mut positions: Vec<u32> = (0..).take(records.len()).collect();
    let at = |position: u32| &records[position as usize];
    let place = |record: &Record| (record.chunk.uncompressed_offset, record.chunk.uncompressed_size);
    if !records.is_sorted_by_key(place) {
        positions.sort_by(|&one, &other| place(at(one)).cmp(&place(at(other))).then(Ordering::Equal));
    }
    let overlap = |pair: &&[u32]| {
        let (one, other) = (at(pair[0]), at(pair[1]));
        one.end() > other.chunk.uncompressed_offset && !same_bytes(&one.chunk, &other.chunk)
    };
    match positions.windows(2).find(overlap) {
        Some(pair) => Err(at(pair[1]).index),
        None => Ok(positions),
    }
}
