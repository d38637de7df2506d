//! Chunks, which are listed behind each file.

use std::ops::Range;
use std::sync::OnceLock;

use super::RafsV5;
use crate::blob::{Blob, BlobIndex, Chunk, ChunkIndex};
use crate::bootstrap::read::chunk_entry::{decode, decode_of, entry_key};
use crate::bootstrap::read::data::Data;
use crate::bootstrap::read::format::{Chunks, DescribedChunks};
use crate::bootstrap::read::pieces::{FileChunks, Pieces};
use crate::bootstrap::read::{At, Nid, ReadError};
use crate::layout::chunk_table::ChunkEntry;
use crate::layout::v5::inode_flags;
use crate::layout::v6::FileType;

/// The chunks by blob and index: each with the index of an inode that has it, and its number there. Made when a chunk
/// is first asked for by index, `None` if the bootstrap is broken.
#[derive(Debug, Default)]
pub(super) struct ChunkLocations(OnceLock<Option<Vec<Location>>>);

/// Blob, chunk; inode, position.
type Location = ((u32, u32), (u32, u32));

impl RafsV5 {
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
            locations.extend(known.map(|(position, chunk)| (entry_key(chunk), (index, position as u32))));
        }
        locations.sort_unstable();
        locations.dedup_by_key(|(key, _)| *key);
        Ok(locations)
    }

    fn at<'a>(&self, data: &'a Data, (index, position): (u32, u32)) -> Result<&'a ChunkEntry, ReadError> {
        let record = self.record(data, u64::from(index))?;
        record.chunks()?.get(position as usize).ok_or(record.corrupt("its chunks"))
    }
}

impl Chunks for RafsV5 {
    /// It is how v5 says what files consist of.
    fn has_chunk_table(&self) -> bool {
        true
    }

    fn chunk(
        &self,
        data: &Data,
        properties: &Blob,
        blob: BlobIndex,
        chunk: ChunkIndex,
    ) -> Result<Chunk, ReadError> {
        let locations = self.locations(data)?;
        let found = locations.binary_search_by_key(&(u32::from(blob.0), chunk.0), |(key, _)| *key);
        let found = found.map_err(|_| ReadError::NoSuchChunk { blob: blob.0, chunk: chunk.0 })?;
        decode(self.at(data, locations[found].1)?, properties, chunk)
    }

    /// All chunks that files have.
    fn described<'a>(&'a self, data: &'a Data, blobs: &'a [Blob]) -> Result<DescribedChunks<'a>, ReadError> {
        Ok(Box::new(
            self.locations(data)?.iter().map(move |&(key, at)| decode_of(key, self.at(data, at)?, blobs)),
        ))
    }

    fn pieces<'a>(
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
        let chunk_size = self.summary.chunk_size;
        if chunks.len() as u64 != size.div_ceil(u64::from(chunk_size)) {
            return Err(record.corrupt("as many chunks as its size needs"));
        }
        let range = (range.start, range.end.min(size));
        Ok(Pieces::new(nid, FileChunks::Entries(chunks), chunk_size, range, blobs))
    }
}
