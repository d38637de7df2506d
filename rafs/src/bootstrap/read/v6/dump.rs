//! What is v6's own: superblocks, devices, tables, and inodes as EROFS has them.

use std::io::Write;

use super::RafsV6;
use crate::bootstrap::read::Nid;
use crate::bootstrap::read::data::Data;
use crate::bootstrap::read::dump::{DumpError, Escaped, chunk, fields};
use crate::bootstrap::read::format::Dump;
use crate::digest::Digest;
use crate::layout::v6::{
    BlobEntry, CompactInode, DEVICE_TABLE_OFFSET, DeviceSlot, EXTENSION_OFFSET, ErofsSuperblock,
    ExtendedInode, ExtensionSuperblock, FORMAT_EXTENDED, SUPERBLOCK_OFFSET,
};

/// What both kinds of inodes have.
macro_rules! common_fields {
    ($inode:expr) => {
        format_args!(
            "format {:#x}, xattr_count {}, mode {:o}, links {}, size {}, union {:#x}, ino {}, owner {}:{}",
            $inode.format,
            $inode.xattr_count,
            $inode.mode.get(),
            $inode.links,
            $inode.size,
            $inode.union,
            $inode.ino,
            $inode.uid,
            $inode.gid,
        )
    };
}

impl Dump for RafsV6 {
    /// Writes superblocks, devices, blob table and chunk table.
    fn dump_tables(&self, data: &Data, out: &mut dyn Write) -> Result<(), DumpError> {
        let sb: &ErofsSuperblock = data.view("superblock", SUPERBLOCK_OFFSET)?;
        writeln!(out, "superblock at {SUPERBLOCK_OFFSET}:")?;
        fields!(out, sb, {
            magic: "{:#x}", checksum: "{:#x}", feature_compat: "{:#x}", block_bits: "{}", ext_slots: "{}", root_nid: "{}",
            inodes: "{}", build_time: "{}", build_time_nsec: "{}", blocks: "{}", meta_blkaddr: "{}", xattr_blkaddr: "{}",
            feature_incompat: "{:#x}", union: "{:#x}", extra_devices: "{}", device_slot_offset: "{}",
        });
        let extension: &ExtensionSuperblock = data.view("extension superblock", EXTENSION_OFFSET)?;
        writeln!(out, "extension superblock at {EXTENSION_OFFSET}:")?;
        fields!(out, extension, {
            flags: "{:#x}", blob_table_offset: "{}", blob_table_size: "{}", chunk_size: "{}", chunk_table_offset: "{}",
            chunk_table_size: "{}", prefetch_table_offset: "{}", prefetch_table_size: "{}",
        });
        let size = u64::from(sb.extra_devices.get()) * size_of::<DeviceSlot>() as u64;
        let devices: &[DeviceSlot] = data.table("device slots", DEVICE_TABLE_OFFSET, size)?;
        for (number, device) in devices.iter().enumerate() {
            let offset = DEVICE_TABLE_OFFSET + (number * size_of::<DeviceSlot>()) as u64;
            writeln!(out, "device {number} at {offset}:\n  blob_id: {}", id(&device.blob_id))?;
            fields!(out, device, { blocks: "{}", mapped_blkaddr: "{}" });
        }
        blobs(data, extension, out)?;
        writeln!(out, "chunk table at {}:", extension.chunk_table_offset)?;
        for entry in self.chunks.entries(data)? {
            write!(out, "  ")?;
            chunk(entry, out)?;
        }
        Ok(())
    }

    /// Writes an inode's own fields.
    fn dump_inode(&self, data: &Data, nid: Nid, out: &mut dyn Write) -> Result<(), DumpError> {
        let offset = self.inode_offset(nid)?;
        let compact: &CompactInode = data.view("inode", offset)?;
        if compact.format.get() & FORMAT_EXTENDED == 0 {
            writeln!(out, "  compact at {offset}: {}", common_fields!(compact))?;
            return Ok(());
        }
        let inode: &ExtendedInode = data.view("inode", offset)?;
        let (seconds, nanoseconds) = (inode.mtime.get().cast_signed(), inode.mtime_nsec.get());
        writeln!(out, "  extended at {offset}: {}, mtime {seconds}.{nanoseconds:09}", common_fields!(inode))?;
        Ok(())
    }
}

fn blobs(data: &Data, extension: &ExtensionSuperblock, out: &mut dyn Write) -> Result<(), DumpError> {
    let start = extension.blob_table_offset.get();
    let table: &[BlobEntry] = data.table("blob table", start, u64::from(extension.blob_table_size.get()))?;
    for (number, blob) in table.iter().enumerate() {
        let offset = start + (number * size_of::<BlobEntry>()) as u64;
        writeln!(out, "blob {number} at {offset}:\n  blob_id: {}", id(&blob.blob_id))?;
        fields!(out, blob, {
            blob_index: "{}", chunk_size: "{}", chunk_count: "{}", compressor: "{}", digester: "{}", features: "{:#x}",
            compressed_size: "{}", uncompressed_size: "{}", toc_size: "{}", meta_compressor: "{}", meta_offset: "{}",
            meta_compressed_size: "{}", meta_uncompressed_size: "{}", meta_size: "{}", cipher: "{}",
        });
        writeln!(
            out,
            "  toc_digest: {}\n  meta_digest: {}",
            Digest(blob.toc_digest),
            Digest(blob.meta_digest)
        )?;
    }
    Ok(())
}

fn id(id: &[u8; 64]) -> Escaped<'_> {
    Escaped(id)
}
