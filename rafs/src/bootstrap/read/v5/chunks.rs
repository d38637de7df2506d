//! Chunks, which are listed behind each file.

use std::ops::Range;
use std::sync::OnceLock;

use super::super::chunk_entry::decode;
use super::super::data::Data;
use super::super::{At, ChunkUse, Nid, ReadError};
use super::Layout;
use crate::blob::{Blob, BlobIndex, Chunk, ChunkIndex};
use crate::layout::chunk_table::ChunkEntry;
use crate::layout::flags::chunk as flags;
use crate::layout::v5::inode_flags;
use crate::layout::v6::FileType;

/// The chunks by blob and index: each with the index of an inode that has it, and its number there. Made when a chunk
/// is first asked for by index, `None` if the bootstrap is broken.
#[derive(Debug, Default)]
pub(super) struct ChunkIndexTable(OnceLock<Option<Vec<Location>>>);

/// Blob, chunk; inode, position.
type Location = ((u32, u32), (u32, u32));

impl Layout {
    fn locations(&self, data: &Data) -> Result<&[Location], ReadError> {
        let table = self.chunks.0.get_or_init(|| self.collect(data).ok());
        let expected = "inodes whose chunks do not overlap";
        table.as_deref().ok_or(ReadError::corrupt("inode table", At::Byte(0), expected))
    }

    fn collect(&self, data: &Data) -> Result<Vec<Location>, ReadError> {
        let mut locations = Vec::new();
        // Inodes do not overlap, so neither do their chunks: together they are no larger than the bootstrap.
        let mut budget = data.len();
        for index in 1..=self.inode_table_entries {
            let record = self.record(data, u64::from(index))?;
            if record.kind != FileType::Regular {
                continue;
            }
            let chunks = record.chunks()?;
            let left = budget.checked_sub(size_of_val(chunks) as u64);
            budget = left.ok_or(record.corrupt("chunks that do not overlap"))?;
            let known = chunks.iter().enumerate();
            locations.extend(known.map(|(position, chunk)| (key(chunk), (index, position as u32))));
        }
        locations.sort_unstable();
        locations.dedup_by_key(|(key, _)| *key);
        Ok(locations)
    }

    fn at<'a>(&self, data: &'a Data, (index, position): (u32, u32)) -> Result<&'a ChunkEntry, ReadError> {
        let record = self.record(data, u64::from(index))?;
        record.chunks()?.get(position as usize).ok_or(record.corrupt("its chunks"))
    }

    pub(in super::super) fn chunk(
        &self,
        data: &Data,
        of: &Blob,
        blob: BlobIndex,
        chunk: ChunkIndex,
    ) -> Result<Chunk, ReadError> {
        let locations = self.locations(data)?;
        let found = locations.binary_search_by_key(&(u32::from(blob.0), chunk.0), |(key, _)| *key);
        let found = found.map_err(|_| ReadError::NoSuchChunk { blob: blob.0, chunk: chunk.0 })?;
        decode(self.at(data, locations[found].1)?, of, chunk)
    }

    /// All chunks that files have.
    pub(in super::super) fn table<'a>(
        &'a self,
        data: &'a Data,
        blobs: &'a [Blob],
    ) -> Result<
        impl ExactSizeIterator<Item = Result<(BlobIndex, ChunkIndex, Chunk), ReadError>> + 'a,
        ReadError,
    > {
        Ok(self.locations(data)?.iter().map(move |&((blob, index), at)| {
            let blob = BlobIndex(u8::try_from(blob).unwrap_or(u8::MAX));
            let of = blobs.get(usize::from(blob.0)).ok_or(ReadError::NoSuchBlob(blob.0))?;
            Ok((blob, ChunkIndex(index), decode(self.at(data, at)?, of, ChunkIndex(index))?))
        }))
    }

    pub(in super::super) fn pieces<'a>(
        &self,
        data: &'a Data,
        nid: Nid,
        range: Range<u64>,
        blobs: usize,
    ) -> Result<Pieces<'a>, ReadError> {
        let record = self.first(data, nid)?;
        let chunks = record.chunks()?;
        if record.raw.flags.get() & inode_flags::HAS_HOLE != 0 {
            return Err(ReadError::Unsupported("a file with holes in RAFS v5"));
        }
        let size = record.raw.size.get();
        if chunks.len() as u64 != size.div_ceil(u64::from(self.chunk_size)) {
            return Err(record.corrupt("as many chunks as its size needs"));
        }
        let (at, end) = (range.start, range.end.min(size));
        Ok(Pieces { nid, chunks, chunk_size: self.chunk_size, at, end, blobs })
    }
}

fn key(entry: &ChunkEntry) -> (u32, u32) {
    (entry.blob_index.get(), entry.index.get())
}

/// The pieces of a file's range.
#[derive(Clone, Debug)]
pub(in super::super) struct Pieces<'a> {
    nid: Nid,
    chunks: &'a [ChunkEntry],
    chunk_size: u32,
    at: u64,
    end: u64,
    blobs: usize,
}

impl Pieces<'_> {
    pub(in super::super) fn stored_size(&self) -> u64 {
        size_of_val(self.chunks) as u64
    }

    fn step(&mut self) -> Result<ChunkUse, ReadError> {
        let corrupt = |expected| ReadError::corrupt("chunk of inode", At::Number(self.nid.0), expected);
        let chunk_size = u64::from(self.chunk_size);
        // In range, for there is a chunk for each part of the file.
        let entry = &self.chunks[(self.at / chunk_size) as usize];
        let blob = u8::try_from(entry.blob_index.get()).ok().filter(|blob| usize::from(*blob) < self.blobs);
        let blob = blob.ok_or(corrupt("a chunk in one of the image's blobs"))?;
        if entry.flags.get() & flags::HOLE != 0 {
            return Err(ReadError::Unsupported("a file with holes in RAFS v5"));
        }
        if entry.file_offset.get() != self.at - self.at % chunk_size {
            return Err(corrupt("chunks in the order of the file"));
        }
        let offset_in_chunk = self.at % chunk_size;
        let piece = ChunkUse {
            blob: BlobIndex(blob),
            chunk: ChunkIndex(entry.index.get()),
            uncompressed_offset: entry.uncompressed_offset.get(),
            offset_in_chunk: offset_in_chunk as u32,
            // Both less than a chunk, which is less than 2^32.
            len: (chunk_size - offset_in_chunk).min(self.end - self.at) as u32,
            file_offset: self.at,
        };
        self.at += u64::from(piece.len);
        Ok(piece)
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<ChunkUse, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let result = self.step();
        if result.is_err() {
            self.at = self.end;
        }
        Some(result)
    }
}
