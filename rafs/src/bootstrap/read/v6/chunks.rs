//! The chunk table.

use std::sync::OnceLock;

use super::super::chunk_entry::decode;
use super::super::data::Data;
use super::super::{At, ReadError};
use super::Layout;
use crate::blob::{Blob, BlobIndex, Chunk, ChunkIndex};
use crate::layout::chunk_table::ChunkEntry;

/// Where the table is, and the order of its entries once that was needed.
#[derive(Debug)]
pub(super) struct ChunkTable {
    offset: u64,
    size: u64,
    /// Entries by blob and index, where the table itself has another order.
    sorted: OnceLock<Vec<u32>>,
}

impl ChunkTable {
    pub(super) fn new(data: &Data, offset: u64, size: u64) -> Result<Self, ReadError> {
        let this = Self { offset: if size == 0 { 0 } else { offset }, size, sorted: OnceLock::new() };
        let table = this.entries(data)?;
        if u32::try_from(table.len()).is_err() {
            let expected = "at most 2^32 entries";
            return Err(ReadError::corrupt("chunk table", At::Byte(offset), expected));
        }
        Ok(this)
    }

    pub(super) fn entries<'a>(&self, data: &'a Data) -> Result<&'a [ChunkEntry], ReadError> {
        data.table("chunk table", self.offset, self.size)
    }

    /// The entry of a chunk.
    fn find<'a>(&self, data: &'a Data, key: (u32, u32)) -> Result<Option<&'a ChunkEntry>, ReadError> {
        let table = self.entries(data)?;
        if self.sorted.get().is_none()
            && let Ok(found) = table.binary_search_by_key(&key, entry_key)
        {
            return Ok(Some(&table[found]));
        }
        let sorted = self.sorted.get_or_init(|| {
            let mut positions: Vec<u32> = (0..table.len() as u32).collect();
            positions.sort_by_key(|&position| entry_key(&table[position as usize]));
            positions
        });
        let found = sorted.binary_search_by_key(&key, |&position| entry_key(&table[position as usize]));
        Ok(found.ok().map(|found| &table[sorted[found] as usize]))
    }
}

fn entry_key(entry: &ChunkEntry) -> (u32, u32) {
    (entry.blob_index.get(), entry.index.get())
}

impl Layout {
    /// The table as it is stored.
    pub(in super::super) fn chunk_entries<'a>(&self, data: &'a Data) -> Result<&'a [ChunkEntry], ReadError> {
        self.chunks.entries(data)
    }

    pub(in super::super) fn has_chunk_table(&self) -> bool {
        self.chunks.size > 0
    }

    /// A chunk as the table has it. Of a batch member, index and offset in the batch are not known here and are 0.
    pub(in super::super) fn chunk(
        &self,
        data: &Data,
        of: &Blob,
        blob: BlobIndex,
        chunk: ChunkIndex,
    ) -> Result<Chunk, ReadError> {
        let entry = self.chunks.find(data, (u32::from(blob.0), chunk.0))?;
        let entry = entry.ok_or(ReadError::NoSuchChunk { blob: blob.0, chunk: chunk.0 })?;
        decode(entry, of, chunk)
    }

    /// All chunks of the table, as [`Layout::chunk`] gives them.
    pub(in super::super) fn table<'a>(
        &self,
        data: &'a Data,
        blobs: &'a [Blob],
    ) -> Result<
        impl ExactSizeIterator<Item = Result<(BlobIndex, ChunkIndex, Chunk), ReadError>> + 'a,
        ReadError,
    > {
        Ok(self.chunks.entries(data)?.iter().map(move |entry| {
            let (blob, index) = entry_key(entry);
            let blob = u8::try_from(blob).unwrap_or(u8::MAX);
            let of = blobs.get(usize::from(blob)).ok_or(ReadError::NoSuchBlob(blob))?;
            Ok((BlobIndex(blob), ChunkIndex(index), decode(entry, of, ChunkIndex(index))?))
        }))
    }
}
