//! Reading RAFS v5.
//!
//! Each name has an inode record of its own, found by its index through the inode table; the entries of a directory
//! have consecutive indexes. A hard link's record repeats the file, and says the index of the first name: that is the
//! [`Nid`] of all.

mod blobs;
mod chunks;
mod directory;
mod dump;
mod inode;

use zerocopy::little_endian::U32;

use super::data::Data;
use super::format::{Format, Opened, PREFETCH_LIMIT, Summary};
use super::{At, Nid, ReadError, Version};
use crate::layout::flags::superblock as flags;
use crate::layout::v5::{MAGIC, RafsSuperblock, SUPERBLOCK_SIZE, VERSION};
use crate::layout::{CHUNK_SIZES, is_chunk_size};

/// The root's index in the inode table, counted from 1.
const ROOT: Nid = Nid(1);

/// Where things are, as the superblock says.
#[derive(Debug)]
pub(super) struct RafsV5 {
    summary: Summary,
    inode_table_offset: u64,
    inode_table_entries: u32,
    prefetch_table_offset: u64,
    prefetch_table_entries: u32,
    chunks: chunks::ChunkLocations,
}

impl RafsV5 {
    /// Whether the bytes are RAFS v5.
    pub(super) fn detect(data: &Data) -> bool {
        let sb: Result<&RafsSuperblock, _> = data.view("superblock", 0);
        sb.is_ok_and(|sb| sb.magic.get() == MAGIC && sb.version.get() == VERSION)
    }

    /// Reads the superblock and the blob tables.
    pub(super) fn open(data: &Data) -> Result<Opened, ReadError> {
        let sb: &RafsSuperblock = data.view("superblock", 0)?;
        let corrupt = |expected| ReadError::corrupt("superblock", At::Byte(0), expected);
        if sb.superblock_size.get() != SUPERBLOCK_SIZE {
            return Err(corrupt("a superblock of 8,192 bytes").found(sb.superblock_size));
        }
        if sb.flags.get() & flags::ENCRYPTION_AES_128_XTS != 0 {
            return Err(ReadError::Unsupported("an encrypted image (AES-128-XTS)"));
        }
        if sb.flags.get() & flags::COMPRESSION_GZIP != 0 {
            return Err(ReadError::Unsupported("gzip compression"));
        }
        let chunk_size = sb.chunk_size.get();
        if !is_chunk_size(chunk_size) {
            return Err(corrupt(CHUNK_SIZES).found(chunk_size));
        }
        let blobs = blobs::read(data, sb)?;
        let layout = Self {
            summary: Summary { version: Version::V5, chunk_size, inodes: sb.inodes.get(), root: ROOT },
            inode_table_offset: sb.inode_table_offset.get(),
            inode_table_entries: sb.inode_table_entries.get(),
            prefetch_table_offset: sb.prefetch_table_offset.get(),
            prefetch_table_entries: sb.prefetch_table_entries.get(),
            chunks: chunks::ChunkLocations::default(),
        };
        layout.inode_table(data)?;
        layout.record(data, ROOT.0)?.expect_directory()?;
        Ok(Opened { format: Box::new(layout), blobs })
    }

    fn inode_table<'a>(&self, data: &'a Data) -> Result<&'a [U32], ReadError> {
        let size = u64::from(self.inode_table_entries) * size_of::<U32>() as u64;
        data.table("inode table", self.inode_table_offset, size)
    }
}

impl Format for RafsV5 {
    fn summary(&self) -> Summary {
        self.summary
    }

    fn prefetch(&self, data: &Data) -> Result<Vec<Nid>, ReadError> {
        let size = u64::from(self.prefetch_table_entries) * size_of::<U32>() as u64;
        let offset = if size == 0 { 0 } else { self.prefetch_table_offset };
        let table: &[U32] = data.table("prefetch table", offset, size)?;
        // A 0 ends the table early: it is padding.
        let used = table.iter().map(|index| u64::from(index.get())).take_while(|index| *index != 0);
        used.take(PREFETCH_LIMIT).map(|index| Ok(Nid(self.record(data, index)?.raw.ino.get()))).collect()
    }
}
