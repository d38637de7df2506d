//! Inode records.

use super::RafsV5;
use crate::bootstrap::read::data::Data;
use crate::bootstrap::read::format::Inodes;
use crate::bootstrap::read::{At, Inode, Nid, ReadError};
use crate::layout::chunk_table::ChunkEntry;
use crate::layout::v5::{ALIGNMENT, InodeRecord, inode_flags};
use crate::layout::v6::FileType;
use crate::layout::{LINK_TARGETS, NAME_LIMIT_BYTES, PATH_LIMIT_BYTES, is_name};
use crate::tree::{DeviceNumber, Time, Xattrs};

/// An inode record, and where it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub(super) raw: &'a InodeRecord,
    pub(super) kind: FileType,
    data: &'a Data,
    offset: u64,
    index: u64,
}

fn aligned(size: impl Into<u64>) -> u64 {
    size.into().next_multiple_of(ALIGNMENT)
}

impl<'a> Record<'a> {
    pub(super) fn corrupt(&self, expected: &'static str) -> ReadError {
        ReadError::corrupt("inode", At::Number(self.index), expected)
    }

    pub(super) fn expect_directory(self) -> Result<Self, ReadError> {
        let nid = Nid(self.raw.ino.get());
        if self.kind == FileType::Directory { Ok(self) } else { Err(ReadError::NotADirectory(nid)) }
    }

    /// Where it is, in bytes.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    fn behind_inode(&self) -> u64 {
        self.offset + size_of::<InodeRecord>() as u64
    }

    pub(super) fn name(&self) -> Result<&'a [u8], ReadError> {
        let name = self.data.bytes("name", self.behind_inode(), u64::from(self.raw.name_size.get()))?;
        // Only the root has another name, and nobody asks for it: `.` and `..` are no records here.
        if is_name(name) && !matches!(name, b"." | b"..") {
            Ok(name)
        } else {
            Err(self.corrupt("a name of 1 to 255 bytes without '/' and NUL, other than '.' and '..'"))
        }
    }

    fn behind_name(&self) -> u64 {
        self.behind_inode() + aligned(self.raw.name_size.get())
    }

    fn xattrs_offset(&self) -> u64 {
        self.behind_name() + aligned(self.raw.symlink_size.get())
    }

    /// The stored bytes of extended attributes, without their size, and where what follows them begins.
    fn xattrs(&self) -> Result<(&'a [u8], u64), ReadError> {
        let start = self.xattrs_offset();
        if self.raw.flags.get() & inode_flags::XATTR == 0 {
            return Ok((&[], start));
        }
        let size: &zerocopy::little_endian::U64 = self.data.view("extended attributes", start)?;
        let bytes = self.data.bytes("extended attributes", start + 8, size.get())?;
        // In bounds, so this does not overflow.
        Ok((bytes, start + 8 + aligned(size.get())))
    }

    /// The chunks of a regular file.
    pub(super) fn chunks(&self) -> Result<&'a [ChunkEntry], ReadError> {
        if self.kind != FileType::Regular {
            return Err(ReadError::NotAFile(Nid(self.raw.ino.get())));
        }
        let size = u64::from(self.raw.child_count.get()) * size_of::<ChunkEntry>() as u64;
        self.data.table("chunks of an inode", self.xattrs()?.1, size)
    }

    /// The bytes of the record with all that follows it.
    pub(super) fn stored_size(&self) -> Result<u64, ReadError> {
        Ok(self.xattrs()?.1 - self.offset)
    }
}

impl RafsV5 {
    /// The record of an index, counted from 1.
    pub(super) fn record<'a>(&self, data: &'a Data, index: u64) -> Result<Record<'a>, ReadError> {
        let corrupt = |expected| ReadError::corrupt("inode", At::Number(index), expected);
        let position = index.checked_sub(1).and_then(|position| usize::try_from(position).ok());
        let entry = position.and_then(|position| self.inode_table(data).ok()?.get(position));
        let entry = entry.ok_or(corrupt("an index in the inode table"))?;
        let offset = u64::from(entry.get()) * ALIGNMENT;
        let raw: &InodeRecord = data.view("inode", offset)?;
        let mode = u16::try_from(raw.mode.get()).map_err(|_| corrupt("a mode of 16 bits"))?;
        let kind = FileType::of_mode(mode).ok_or(corrupt("a known file type"))?;
        Ok(Record { raw, kind, data, offset, index })
    }

    /// The record of a file's first name.
    pub(super) fn first<'a>(&self, data: &'a Data, nid: Nid) -> Result<Record<'a>, ReadError> {
        let record = self.record(data, nid.0)?;
        if record.raw.ino.get() != nid.0 {
            return Err(record.corrupt("the record of a file's first name"));
        }
        Ok(record)
    }
}

impl Inodes for RafsV5 {
    fn inode(&self, data: &Data, nid: Nid) -> Result<Inode, ReadError> {
        let record = self.first(data, nid)?;
        let raw = record.raw;
        let device = matches!(record.kind, FileType::CharDevice | FileType::BlockDevice);
        let mtime = Time { seconds: raw.mtime.get().cast_signed(), nanoseconds: raw.mtime_nsec.get() };
        if mtime.nanoseconds >= 1_000_000_000 {
            return Err(record.corrupt("fewer than 1,000,000,000 nanoseconds"));
        }
        Ok(Inode {
            kind: record.kind,
            size: match record.kind {
                FileType::Symlink => u64::from(raw.symlink_size.get()),
                FileType::Regular | FileType::Directory => raw.size.get(),
                _ => 0,
            },
            permissions: raw.mode.get() as u16 & 0o7777,
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            mtime,
            nlink: raw.links.get(),
            rdev: if device { DeviceNumber::decode(raw.rdev.get()) } else { DeviceNumber::default() },
        })
    }

    fn inode_size(&self, data: &Data, nid: Nid) -> Result<u64, ReadError> {
        self.first(data, nid)?.stored_size()
    }

    fn read_link<'a>(&self, data: &'a Data, nid: Nid) -> Result<&'a [u8], ReadError> {
        let record = self.first(data, nid)?;
        if record.kind != FileType::Symlink {
            return Err(ReadError::NotASymlink(nid));
        }
        let size = u64::from(record.raw.symlink_size.get());
        let target = data.bytes("target of a symbolic link", record.behind_name(), size)?;
        if size > PATH_LIMIT_BYTES as u64 || target.contains(&0) {
            return Err(record.corrupt(LINK_TARGETS));
        }
        Ok(target)
    }

    fn xattrs(&self, data: &Data, nid: Nid) -> Result<Xattrs, ReadError> {
        let record = self.first(data, nid)?;
        let mut xattrs = Xattrs::new();
        let mut rest = record.xattrs()?.0;
        while !rest.is_empty() {
            let (name, value, next) =
                split(rest).ok_or(record.corrupt("extended attributes that end where they should"))?;
            if name.is_empty() || name.len() > NAME_LIMIT_BYTES {
                return Err(record.corrupt("extended attributes with names of 1 to 255 bytes"));
            }
            xattrs.insert(name.into(), value.into());
            rest = next;
        }
        Ok(xattrs)
    }
}

/// Name and value of the first extended attribute, and those behind it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (size, rest) = bytes.split_first_chunk::<4>()?;
    let (pair, rest) = rest.split_at_checked(u32::from_le_bytes(*size) as usize)?;
    let end = pair.iter().position(|&byte| byte == 0)?;
    Some((&pair[..end], &pair[end + 1..], rest))
}
