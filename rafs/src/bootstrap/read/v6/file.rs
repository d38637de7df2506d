//! The chunks of regular files.

use std::ops::Range;

use super::super::data::Data;
use super::super::{At, ChunkUse, Nid, ReadError};
use super::Layout;
use crate::blob::{BlobIndex, ChunkIndex};
use crate::layout::BLOCK_SIZE;
use crate::layout::v6::{CHUNK_FORMAT_INDEXES, CHUNK_FORMAT_SIZE_MASK, ChunkAddress, LAYOUT_CHUNKED};

impl Layout {
    pub(in super::super) fn pieces<'a>(
        &self,
        data: &'a Data,
        nid: Nid,
        range: Range<u64>,
        blobs: usize,
    ) -> Result<Pieces<'a>, ReadError> {
        let inode = self.inode(data, nid)?.expect_file()?;
        if inode.size == 0 {
            return Ok(Pieces { nid, addresses: &[], chunk_size: self.chunk_size, at: 0, end: 0, blobs });
        }
        if inode.layout() != LAYOUT_CHUNKED || inode.union & CHUNK_FORMAT_INDEXES == 0 {
            return Err(inode.corrupt("a regular file made of chunks"));
        }
        // A file of contiguous chunks says it has one large chunk, for EROFS. All addresses are there nevertheless.
        let bits = (inode.union & CHUNK_FORMAT_SIZE_MASK) + BLOCK_SIZE.trailing_zeros();
        if bits < self.chunk_size.trailing_zeros() {
            return Err(inode.corrupt("chunks of the image's chunk size or more"));
        }
        let count = inode.size.div_ceil(u64::from(self.chunk_size));
        let start = inode.behind().checked_next_multiple_of(size_of::<ChunkAddress>() as u64);
        let start = start.ok_or(inode.corrupt("chunk addresses within the bootstrap"))?;
        let size = count.checked_mul(size_of::<ChunkAddress>() as u64);
        let size = size.ok_or(inode.corrupt("chunk addresses within the bootstrap"))?;
        let addresses = data.table("chunk addresses", start, size)?;
        let (at, end) = (range.start, range.end.min(inode.size));
        Ok(Pieces { nid, addresses, chunk_size: self.chunk_size, at, end, blobs })
    }
}

/// The pieces of a file's range.
#[derive(Clone, Debug)]
pub(in super::super) struct Pieces<'a> {
    nid: Nid,
    addresses: &'a [ChunkAddress],
    chunk_size: u32,
    at: u64,
    end: u64,
    blobs: usize,
}

impl Pieces<'_> {
    pub(in super::super) fn stored_size(&self) -> u64 {
        size_of_val(self.addresses) as u64
    }

    fn step(&mut self) -> Result<ChunkUse, ReadError> {
        let chunk_size = u64::from(self.chunk_size);
        // In range, for there is an address for each chunk up to the end of the file.
        let address = &self.addresses[(self.at / chunk_size) as usize];
        let blob = address.device.checked_sub(1).filter(|blob| usize::from(*blob) < self.blobs);
        let expected = "a chunk in one of the image's blobs";
        let blob =
            blob.ok_or(ReadError::corrupt("chunk address of inode", At::Number(self.nid.0), expected))?;
        let offset_in_chunk = self.at % chunk_size;
        // Both less than a chunk, which is less than 2^32.
        let len = (chunk_size - offset_in_chunk).min(self.end - self.at) as u32;
        let piece = ChunkUse {
            blob: BlobIndex(blob),
            chunk: ChunkIndex(address.index()),
            uncompressed_offset: u64::from(address.block.get()) * BLOCK_SIZE,
            offset_in_chunk: offset_in_chunk as u32,
            len,
            file_offset: self.at,
        };
        self.at += u64::from(len);
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
