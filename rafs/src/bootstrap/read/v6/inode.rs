//! Inodes, extended attributes and symbolic links.

use super::RafsV6;
use crate::bootstrap::read::data::Data;
use crate::bootstrap::read::format::Inodes;
use crate::bootstrap::read::{At, Inode, Nid, ReadError};
use crate::layout::v6::{
    CompactInode, ExtendedInode, FORMAT_EXTENDED, FileType, LAYOUT_INLINE, LAYOUT_PLAIN, SLOT_SIZE,
    XATTR_PREFIXES, XattrEntry, XattrHeader,
};
use crate::layout::{BLOCK_SIZE, LINK_TARGETS, NAME_LIMIT_BYTES, PATH_LIMIT_BYTES};
use crate::tree::{DeviceNumber, Time, Xattrs};

/// A compact or extended inode.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawInode {
    nid: Nid,
    /// Where its extended attributes start.
    xattrs: u64,
    /// Size in bytes of its extended attributes.
    xattrs_size: u64,
    format: u16,
    layout: u16,
    mode: u16,
    kind: FileType,
    pub(super) size: u64,
    pub(super) union: u32,
    uid: u32,
    gid: u32,
    mtime: Time,
    links: u32,
}

impl RawInode {
    /// Where what follows inode and extended attributes begins.
    pub(super) fn behind(&self) -> u64 {
        self.xattrs + self.xattrs_size
    }

    /// Bytes of the inode and its extended attributes.
    fn stored_size(&self) -> u64 {
        self.xattrs_size + size_of::<CompactInode>() as u64
    }

    pub(super) fn layout(&self) -> u16 {
        self.layout
    }

    pub(super) fn corrupt(&self, expected: &'static str) -> ReadError {
        let header = if self.format & FORMAT_EXTENDED != 0 {
            size_of::<ExtendedInode>()
        } else {
            size_of::<CompactInode>()
        };
        ReadError::corrupt("inode", At::Inode(self.nid.0, self.xattrs - header as u64), expected)
    }

    pub(super) fn expect_directory(self) -> Result<Self, ReadError> {
        if self.kind == FileType::Directory { Ok(self) } else { Err(ReadError::NotADirectory(self.nid)) }
    }

    pub(super) fn expect_file(self) -> Result<Self, ReadError> {
        if self.kind == FileType::Regular { Ok(self) } else { Err(ReadError::NotAFile(self.nid)) }
    }

    fn public(&self) -> Inode {
        let device = matches!(self.kind, FileType::CharDevice | FileType::BlockDevice);
        Inode {
            kind: self.kind,
            size: if device { 0 } else { self.size },
            permissions: self.mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            nlink: self.links,
            rdev: if device { DeviceNumber::decode(self.union) } else { DeviceNumber::default() },
        }
    }

    /// Content in the bootstrap, as directories and symbolic links have it: `len` bytes from `offset`, which is a
    /// multiple of the block size, on. They must not go beyond the block.
    pub(super) fn content<'a>(&self, data: &'a Data, offset: u64, len: u64) -> Result<&'a [u8], ReadError> {
        let tail = self.size - self.size % BLOCK_SIZE;
        let at = match self.layout {
            LAYOUT_INLINE if offset >= tail => self.behind().checked_add(offset - tail),
            LAYOUT_PLAIN | LAYOUT_INLINE => (u64::from(self.union) * BLOCK_SIZE).checked_add(offset),
            _ => return Err(self.corrupt("content in blocks or behind the inode")),
        };
        data.bytes("content of an inode", at.ok_or(self.corrupt("content within the bootstrap"))?, len)
    }
}

impl RafsV6 {
    /// Where an inode is, in bytes.
    pub(super) fn inode_offset(&self, nid: Nid) -> Result<u64, ReadError> {
        let offset = nid.0.checked_mul(SLOT_SIZE).and_then(|offset| offset.checked_add(self.meta));
        offset.ok_or(ReadError::corrupt("inode", At::Number(nid.0), "an offset below 2^64"))
    }

    pub(super) fn raw_inode(&self, data: &Data, nid: Nid) -> Result<RawInode, ReadError> {
        let offset = self.inode_offset(nid)?;
        let corrupt = |expected| ReadError::corrupt("inode", At::Inode(nid.0, offset), expected);
        // The compact form first, though the inode may be extended: both have format, mode and the number of attributes at
        // the same places, and behind a compact one the bootstrap may end.
        let compact: &CompactInode = data.view("inode", offset)?;
        let (format, mode) = (compact.format.get(), compact.mode.get());
        let xattrs_size = match compact.xattr_count.get() {
            0 => 0,
            // EROFS counts the header as one: 1 is a header without attributes, and each further one is 4 bytes.
            count => size_of::<XattrHeader>() as u64 + (u64::from(count) - 1) * 4,
        };
        let mut inode = RawInode {
            nid,
            xattrs: offset + size_of::<CompactInode>() as u64,
            xattrs_size,
            format,
            layout: (format >> 1) & 0x7,
            mode,
            kind: FileType::of_mode(mode)
                .ok_or_else(|| corrupt("a known file type").found(format_args!("mode {mode:o}")))?,
            size: u64::from(compact.size.get()),
            union: compact.union.get(),
            uid: u32::from(compact.uid.get()),
            gid: u32::from(compact.gid.get()),
            mtime: self.build_time,
            links: u32::from(compact.links.get()),
        };
        if format & FORMAT_EXTENDED != 0 {
            let extended: &ExtendedInode = data.view("inode", offset)?;
            inode.xattrs = offset + size_of::<ExtendedInode>() as u64;
            inode.size = extended.size.get();
            inode.uid = extended.uid.get();
            inode.gid = extended.gid.get();
            inode.mtime =
                Time { seconds: extended.mtime.get().cast_signed(), nanoseconds: extended.mtime_nsec.get() };
            inode.links = extended.links.get();
        }
        if inode.mtime.nanoseconds >= 1_000_000_000 {
            return Err(corrupt("fewer than 1,000,000,000 nanoseconds").found(inode.mtime.nanoseconds));
        }
        Ok(inode)
    }
}

impl Inodes for RafsV6 {
    fn inode(&self, data: &Data, nid: Nid) -> Result<Inode, ReadError> {
        Ok(self.raw_inode(data, nid)?.public())
    }

    fn inode_size(&self, data: &Data, nid: Nid) -> Result<u64, ReadError> {
        Ok(self.raw_inode(data, nid)?.stored_size())
    }

    fn read_link<'a>(&self, data: &'a Data, nid: Nid) -> Result<&'a [u8], ReadError> {
        let inode = self.raw_inode(data, nid)?;
        if inode.kind != FileType::Symlink {
            return Err(ReadError::NotASymlink(nid));
        }
        if inode.size > PATH_LIMIT_BYTES as u64 {
            return Err(inode.corrupt(LINK_TARGETS).found(inode.size));
        }
        let target = inode.content(data, 0, inode.size)?;
        if target.contains(&0) {
            return Err(inode.corrupt(LINK_TARGETS));
        }
        Ok(target)
    }

    fn xattrs(&self, data: &Data, nid: Nid) -> Result<Xattrs, ReadError> {
        let inode = self.raw_inode(data, nid)?;
        let mut xattrs = Xattrs::new();
        if inode.xattrs_size == 0 {
            return Ok(xattrs);
        }
        let header: &XattrHeader = data.view("extended attributes", inode.xattrs)?;
        if header.shared_count != 0 {
            return Err(ReadError::Unsupported("shared extended attributes"));
        }
        let mut rest = data.bytes("extended attributes", inode.xattrs, inode.xattrs_size)?;
        rest = &rest[size_of::<XattrHeader>()..];
        while !rest.is_empty() {
            let (name, value, next) = split(rest)
                .ok_or(inode.corrupt("extended attributes with known prefixes that end where they should"))?;
            if name.len() > NAME_LIMIT_BYTES || name.contains(&0) {
                return Err(inode.corrupt("extended attributes with names of at most 255 bytes without NUL"));
            }
            xattrs.insert(name.into(), value.into());
            rest = next;
        }
        Ok(xattrs)
    }
}

/// Full name and value of the first extended attribute, and those behind it.
fn split(bytes: &[u8]) -> Option<(Vec<u8>, &[u8], &[u8])> {
    let (entry, rest) = zerocopy::Ref::<&[u8], XattrEntry>::from_prefix(bytes).ok()?;
    let (suffix, rest) = rest.split_at_checked(usize::from(entry.name_len))?;
    let (value, rest) = rest.split_at_checked(usize::from(entry.value_size.get()))?;
    let (_, prefix) = XATTR_PREFIXES.into_iter().find(|(index, _)| *index == entry.name_index)?;
    let padding = (suffix.len() + value.len()).next_multiple_of(4) - (suffix.len() + value.len());
    Some(([prefix, suffix].concat(), value, rest.get(padding..)?))
}
