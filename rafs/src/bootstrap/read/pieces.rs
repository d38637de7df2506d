//! The pieces of regular files: which bytes of which chunks a range consists of.

use super::{At, ChunkUse, Nid, ReadError};
use crate::blob::{BlobIndex, ChunkIndex};
use crate::layout::BLOCK_SIZE;
use crate::layout::chunk_table::ChunkEntry;
use crate::layout::flags::chunk as flags;
use crate::layout::v6::ChunkAddress;

/// The pieces of a file's range. Ends after an error.
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    nid: Nid,
    chunks: FileChunks<'a>,
    chunk_size: u32,
    at: u64,
    end: u64,
    /// How many the image has.
    blobs: usize,
}

/// The chunks of a whole file in its order, as they are stored for it.
#[derive(Clone, Copy, Debug)]
pub(super) enum FileChunks<'a> {
    /// Version 5: all that there is to say of each.
    Entries(&'a [ChunkEntry]),
    /// Version 6: where each is.
    Addresses(&'a [ChunkAddress]),
}

/// Where a chunk of a file is.
struct ChunkPlace {
    blob: Option<u8>,
    chunk: u32,
    uncompressed_offset: u64,
}

impl FileChunks<'_> {
    /// The chunk at `position`, which begins at `file_offset` in the file.
    fn place(self, position: usize, file_offset: u64, nid: Nid) -> Result<ChunkPlace, ReadError> {
        match self {
            Self::Entries(entries) => {
                let entry = &entries[position];
                if entry.flags.get() & flags::HOLE != 0 {
                    return Err(ReadError::Unsupported("a file with holes in RAFS v5"));
                }
                if entry.file_offset.get() != file_offset {
                    return Err(corrupt(nid, "chunks in the order of the file"));
                }
                Ok(ChunkPlace {
                    blob: u8::try_from(entry.blob_index.get()).ok(),
                    chunk: entry.index.get(),
                    uncompressed_offset: entry.uncompressed_offset.get(),
                })
            }
            Self::Addresses(addresses) => {
                let address = &addresses[position];
                Ok(ChunkPlace {
                    // Device 0 is the bootstrap itself.
                    blob: address.device.checked_sub(1),
                    chunk: address.index(),
                    uncompressed_offset: u64::from(address.block.get()) * BLOCK_SIZE,
                })
            }
        }
    }

    fn stored_size(self) -> u64 {
        let size = match self {
            Self::Entries(entries) => size_of_val(entries),
            Self::Addresses(addresses) => size_of_val(addresses),
        };
        size as u64
    }
}

impl<'a> Pieces<'a> {
    /// The pieces from `at` to `end` of the file `nid`. `chunks` are as many as its size up to `end` needs at least, in an
    /// image of so many `blobs`.
    pub(super) fn new(
        nid: Nid,
        chunks: FileChunks<'a>,
        chunk_size: u32,
        (at, end): (u64, u64),
        blobs: usize,
    ) -> Self {
        Self { nid, chunks, chunk_size, at, end, blobs }
    }

    /// The bytes that what is said of the file's chunks takes in the bootstrap.
    pub fn stored_size(&self) -> u64 {
        self.chunks.stored_size()
    }

    fn step(&mut self) -> Result<ChunkUse, ReadError> {
        let chunk_size = u64::from(self.chunk_size);
        let offset_in_chunk = self.at % chunk_size;
        // In range, for there is a chunk for each part of the file.
        let position = (self.at / chunk_size) as usize;
        let place = self.chunks.place(position, self.at - offset_in_chunk, self.nid)?;
        let blob = place.blob.filter(|blob| usize::from(*blob) < self.blobs);
        let piece = ChunkUse {
            blob: BlobIndex(blob.ok_or(corrupt(self.nid, "a chunk in one of the image's blobs"))?),
            chunk: ChunkIndex(place.chunk),
            uncompressed_offset: place.uncompressed_offset,
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

fn corrupt(nid: Nid, expected: &'static str) -> ReadError {
    ReadError::corrupt("chunk of inode", At::Number(nid.0), expected)
}
