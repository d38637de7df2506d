//! What is v5's own: the superblock, and inode records.

use std::io::Write;

use super::RafsV5;
use crate::bootstrap::read::Nid;
use crate::bootstrap::read::data::Data;
use crate::bootstrap::read::dump::{DumpError, chunk, fields};
use crate::bootstrap::read::format::Dump;
use crate::digest::Digest;
use crate::layout::v5::RafsSuperblock;
use crate::layout::v6::FileType;

impl Dump for RafsV5 {
    /// Writes the superblock.
    fn dump_tables(&self, data: &Data, out: &mut dyn Write) -> Result<(), DumpError> {
        let sb: &RafsSuperblock = data.view("superblock", 0)?;
        writeln!(out, "superblock at 0:")?;
        fields!(out, sb, {
            magic: "{:#x}", version: "{:#x}", superblock_size: "{}", chunk_size: "{}", flags: "{:#x}", inodes: "{}",
            inode_table_offset: "{}", prefetch_table_offset: "{}", blob_table_offset: "{}", inode_table_entries: "{}",
            prefetch_table_entries: "{}", blob_table_size: "{}", blob_details_entries: "{}", blob_details_offset: "{}",
        });
        Ok(())
    }

    /// Writes an inode's record, with what it says of its chunks.
    fn dump_inode(&self, data: &Data, nid: Nid, out: &mut dyn Write) -> Result<(), DumpError> {
        let record = self.record(data, nid.0)?;
        let raw = record.raw;
        writeln!(
            out,
            "  record at {}: parent {}, ino {}, mode {:o}, links {}, size {}, blocks {}, flags {:#x}, child_index {}, child_count {}, \
         rdev {:#x}, project {}, owner {}:{}, mtime {}.{:09}, digest {}",
            record.offset(),
            raw.parent,
            raw.ino,
            raw.mode.get(),
            raw.links,
            raw.size,
            raw.blocks,
            raw.flags,
            raw.child_index,
            raw.child_count,
            raw.rdev,
            raw.project,
            raw.uid,
            raw.gid,
            raw.mtime.get().cast_signed(),
            raw.mtime_nsec.get(),
            Digest(raw.digest),
        )?;
        if record.kind == FileType::Regular {
            for entry in record.chunks()? {
                write!(out, "  ")?;
                chunk(entry, out)?;
            }
        }
        Ok(())
    }
}
