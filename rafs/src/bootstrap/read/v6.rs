//! Reading RAFS v6.

mod blobs;
mod chunks;
mod directory;
mod dump;
mod inode;

use super::data::Data;
use super::format::{Format, Opened, PREFETCH_LIMIT, Summary};
use super::{At, Nid, ReadError, Version};
use crate::layout::flags::superblock as flags;
use crate::layout::v6::{
    EXTENSION_OFFSET, ErofsSuperblock, ExtensionSuperblock, INCOMPAT_CHUNKED_FILE, INCOMPAT_DEVICE_TABLE,
    MAGIC, SUPERBLOCK_OFFSET,
};
use crate::layout::{BLOCK_SIZE, CHUNK_SIZES, is_chunk_size};

/// Where things are, as the superblocks say.
#[derive(Debug)]
pub(super) struct RafsV6 {
    summary: Summary,
    /// Offset in bytes from which nids count.
    meta: u64,
    /// The time of compact inodes.
    build_time: crate::tree::Time,
    chunks: chunks::ChunkTable,
    prefetch_offset: u64,
    prefetch_size: u32,
}

impl RafsV6 {
    /// Reads the superblocks and the blob table.
    pub(super) fn open(data: &Data) -> Result<Opened, ReadError> {
        let sb: &ErofsSuperblock =
            data.view("superblock", SUPERBLOCK_OFFSET).map_err(|_| ReadError::NotABootstrap)?;
        if sb.magic.get() != MAGIC {
            return Err(ReadError::NotABootstrap);
        }
        let extension: &ExtensionSuperblock = data.view("extension superblock", EXTENSION_OFFSET)?;
        let bits = extension.flags.get();
        // Before anything is called damaged: an image in tarfs mode is sound and has blocks of 512 bytes.
        refuse_unsupported(sb, bits)?;
        let corrupt = |expected| ReadError::corrupt("superblock", At::Byte(SUPERBLOCK_OFFSET), expected);
        if u64::from(sb.block_bits) != u64::from(BLOCK_SIZE.trailing_zeros()) {
            return Err(corrupt("blocks of 4,096 bytes").found(format_args!("2^{}", sb.block_bits)));
        }
        let incompatible = sb.feature_incompat.get() & !(INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE);
        if incompatible != 0 {
            return Err(ReadError::Unsupported("EROFS features other than chunks and devices"));
        }
        let chunk_size = extension.chunk_size.get();
        if !is_chunk_size(chunk_size) {
            return Err(corrupt(CHUNK_SIZES).found(chunk_size));
        }
        let blobs = blobs::read(data, sb, extension)?;
        let root = Nid(u64::from(sb.root_nid.get()));
        let layout = Self {
            summary: Summary { version: Version::V6, chunk_size, inodes: sb.inodes.get(), root },
            meta: u64::from(sb.meta_blkaddr.get()) * BLOCK_SIZE,
            build_time: crate::tree::Time {
                seconds: sb.build_time.get().cast_signed(),
                nanoseconds: sb.build_time_nsec.get(),
            },
            chunks: chunks::ChunkTable::new(
                data,
                extension.chunk_table_offset.get(),
                extension.chunk_table_size.get(),
            )?,
            prefetch_offset: extension.prefetch_table_offset.get(),
            prefetch_size: extension.prefetch_table_size.get(),
        };
        // Every path begins at the root: found here, its damage is that of the bootstrap and not of whatever is looked for
        // first.
        layout.raw_inode(data, root)?.expect_directory()?;
        Ok(Opened { format: Box::new(layout), blobs })
    }
}

impl Format for RafsV6 {
    fn summary(&self) -> Summary {
        self.summary
    }

    fn prefetch(&self, data: &Data) -> Result<Vec<Nid>, ReadError> {
        // Old images state a size for a table that is not there.
        if self.prefetch_offset == 0 {
            return Ok(Vec::new());
        }
        let table: &[zerocopy::little_endian::U32] =
            data.table("prefetch table", self.prefetch_offset, u64::from(self.prefetch_size))?;
        // Unused entries are 0, which no inode has.
        let used = table.iter().take(PREFETCH_LIMIT).filter(|nid| nid.get() != 0);
        Ok(used.map(|nid| Nid(u64::from(nid.get()))).collect())
    }
}

fn refuse_unsupported(sb: &ErofsSuperblock, bits: u64) -> Result<(), ReadError> {
    let unsupported = [
        (flags::ENCRYPTION_AES_128_XTS, "an encrypted image (AES-128-XTS)"),
        (flags::TARFS_MODE, "an image in tarfs mode"),
        (flags::COMPRESSION_GZIP, "gzip compression"),
    ];
    if let Some((_, name)) = unsupported.into_iter().find(|(bit, _)| bits & bit != 0) {
        return Err(ReadError::Unsupported(name));
    }
    if sb.xattr_blkaddr.get() != 0 {
        return Err(ReadError::Unsupported("shared extended attributes"));
    }
    Ok(())
}
