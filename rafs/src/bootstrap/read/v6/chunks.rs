//! The chunk table, and the chunks of regular files.

use std::ops::Range;
use std::sync::OnceLock;

use super::RafsV6;
use crate::blob::{Blob, BlobIndex, Chunk, ChunkIndex};
use crate::bootstrap::read::chunk_entry::{decode, decode_of, entry_key};
use crate::bootstrap::read::data::Data;
use crate::bootstrap::read::format::{Chunks, DescribedChunks};
use crate::bootstrap::read::pieces::{FileChunks, Pieces};
use crate::bootstrap::read::{At, Nid, ReadError};
use crate::layout::BLOCK_SIZE;
use crate::layout::chunk_table::ChunkEntry;
use crate::layout::v6::{CHUNK_FORMAT_INDEXES, CHUNK_FORMAT_SIZE_MASK, ChunkAddress, LAYOUT_CHUNKED};

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

impl Chunks for RafsV6 {
    fn has_chunk_table(&self) -> bool {
        self.chunks.size > 0
    }

    fn chunk(
        &self,
        data: &Data,
        properties: &Blob,
        blob: BlobIndex,
        chunk: ChunkIndex,
    ) -> Result<Chunk, ReadError> {
        let entry = self.chunks.find(data, (u32::from(blob.0), chunk.0))?;
        let entry = entry.ok_or(ReadError::NoSuchChunk { blob: blob.0, chunk: chunk.0 })?;
        decode(entry, properties, chunk)
    }

    /// All chunks of the table.
    fn described<'a>(&'a self, data: &'a Data, blobs: &'a [Blob]) -> Result<DescribedChunks<'a>, ReadError> {
        let entries = self.chunks.entries(data)?.iter();
        Ok(Box::new(entries.map(move |entry| decode_of(entry_key(entry), entry, blobs))))
    }

    fn pieces<'a>(
        &self,
        data: &'a Data,
        nid: Nid,
        range: Range<u64>,
        blobs: usize,
    ) -> Result<Pieces<'a>, ReadError> {
        let chunk_size = self.summary.chunk_size;
        let inode = self.raw_inode(data, nid)?.expect_file()?;
        if inode.size == 0 {
            return Ok(Pieces::new(nid, FileChunks::Addresses(&[]), chunk_size, (0, 0), blobs));
        }
        if inode.layout() != LAYOUT_CHUNKED || inode.union & CHUNK_FORMAT_INDEXES == 0 {
            return Err(inode.corrupt("a regular file made of chunks"));
        }
        // A file of contiguous chunks says it has one large chunk, for EROFS. All addresses are there nevertheless.
        let bits = (inode.union & CHUNK_FORMAT_SIZE_MASK) + BLOCK_SIZE.trailing_zeros();
        if bits < chunk_size.trailing_zeros() {
            return Err(inode.corrupt("chunks of the image's chunk size or more"));
        }
        let count = inode.size.div_ceil(u64::from(chunk_size));
        let start = inode.behind().checked_next_multiple_of(size_of::<ChunkAddress>() as u64);
        let start = start.ok_or(inode.corrupt("chunk addresses within the bootstrap"))?;
        let size = count.checked_mul(size_of::<ChunkAddress>() as u64);
        let size = size.ok_or(inode.corrupt("chunk addresses within the bootstrap"))?;
        let addresses = data.table("chunk addresses", start, size)?;
        let range = (range.start, range.end.min(inode.size));
        Ok(Pieces::new(nid, FileChunks::Addresses(addresses), chunk_size, range, blobs))
    }
}
