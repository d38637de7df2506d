//! Directories.

use std::cmp::Ordering;

use super::super::data::Data;
use super::super::{DirectoryEntry, Nid, ReadError};
use super::Layout;
use super::inode::Record;
use crate::layout::v5::Inode as RawInode;

impl Layout {
    pub(in super::super) fn lookup(
        &self,
        data: &Data,
        directory: Nid,
        name: &[u8],
    ) -> Result<Option<Nid>, ReadError> {
        let record = self.first(data, directory)?.expect_directory()?;
        if name == b"." {
            return Ok(Some(directory));
        }
        if name == b".." {
            // The root has no parent, or is its own.
            let parent = Nid(record.raw.parent.get());
            return Ok(Some(if parent.0 == 0 { directory } else { parent }));
        }
        let (mut low, mut high) = (0, record.raw.child_count.get());
        while low < high {
            let middle = low + (high - low) / 2;
            let child = self.child(data, &record, middle)?;
            match child.name()?.cmp(name) {
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(Some(Nid(child.raw.ino.get()))),
                Ordering::Less => low = middle + 1,
            }
        }
        Ok(None)
    }

    fn child<'a>(
        &self,
        data: &'a Data,
        directory: &Record<'_>,
        position: u32,
    ) -> Result<Record<'a>, ReadError> {
        self.record(data, u64::from(directory.raw.child_index.get()) + u64::from(position))
    }

    pub(in super::super) fn read_dir<'a>(
        &'a self,
        data: &'a Data,
        directory: Nid,
        offset: u64,
    ) -> Result<Directory<'a>, ReadError> {
        let record = self.first(data, directory)?.expect_directory()?;
        Ok(Directory { layout: self, data, record, position: offset })
    }

    /// The least number of bytes that the entries of a directory take.
    pub(in super::super) fn directory_size(&self, data: &Data, directory: Nid) -> Result<u64, ReadError> {
        let record = self.first(data, directory)?.expect_directory()?;
        Ok(u64::from(record.raw.child_count.get()) * size_of::<RawInode>() as u64)
    }
}

/// The entries of a directory. An offset is the number of the entry.
#[derive(Clone, Debug)]
pub(in super::super) struct Directory<'a> {
    layout: &'a Layout,
    data: &'a Data,
    record: Record<'a>,
    position: u64,
}

impl<'a> Directory<'a> {
    fn step(&mut self, position: u32) -> Result<DirectoryEntry<'a>, ReadError> {
        let child = self.layout.child(self.data, &self.record, position)?;
        self.position += 1;
        let nid = Nid(child.raw.ino.get());
        Ok(DirectoryEntry { nid, name: child.name()?, kind: child.kind, next_offset: self.position })
    }
}

impl<'a> Iterator for Directory<'a> {
    type Item = Result<DirectoryEntry<'a>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let position =
            u32::try_from(self.position).ok().filter(|at| *at < self.record.raw.child_count.get())?;
        let result = self.step(position);
        if result.is_err() {
            self.position = u64::MAX;
        }
        Some(result)
    }
}
