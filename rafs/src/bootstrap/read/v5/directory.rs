//! Directories.

use super::RafsV5;
use super::inode::Record;
use crate::bootstrap::read::data::Data;
use crate::bootstrap::read::format::Directories;
use crate::bootstrap::read::search::search;
use crate::bootstrap::read::{Directory, DirectoryEntry, Nid, ReadError};
use crate::layout::v5::InodeRecord;

impl RafsV5 {
    fn child<'a>(
        &self,
        data: &'a Data,
        directory: &Record<'_>,
        position: u64,
    ) -> Result<Record<'a>, ReadError> {
        self.record(data, u64::from(directory.raw.child_index.get()) + position)
    }
}

impl Directories for RafsV5 {
    fn lookup(&self, data: &Data, directory: Nid, name: &[u8]) -> Result<Option<Nid>, ReadError> {
        let record = self.first(data, directory)?.expect_directory()?;
        if name == b"." {
            return Ok(Some(directory));
        }
        if name == b".." {
            // The root has no parent, or is its own.
            let parent = Nid(record.raw.parent.get());
            return Ok(Some(if parent.0 == 0 { directory } else { parent }));
        }
        let child = |number| self.child(data, &record, number);
        match search(0..record.raw.child_count.get().into(), name, |number| child(number)?.name())? {
            Ok(number) => Ok(Some(Nid(child(number)?.raw.ino.get()))),
            Err(_) => Ok(None),
        }
    }

    fn read_dir<'a>(
        &'a self,
        data: &'a Data,
        directory: Nid,
        offset: u64,
    ) -> Result<Directory<'a>, ReadError> {
        let record = self.first(data, directory)?.expect_directory()?;
        Ok(Directory::new(RecordEntries { format: self, data, record, position: offset }))
    }

    fn directory_size(&self, data: &Data, directory: Nid) -> Result<u64, ReadError> {
        let record = self.first(data, directory)?.expect_directory()?;
        Ok(u64::from(record.raw.child_count.get()) * size_of::<InodeRecord>() as u64)
    }
}

/// The entries of a directory. An offset is the number of the entry.
struct RecordEntries<'a> {
    format: &'a RafsV5,
    data: &'a Data,
    record: Record<'a>,
    position: u64,
}

impl<'a> RecordEntries<'a> {
    fn step(&mut self, position: u64) -> Result<DirectoryEntry<'a>, ReadError> {
        let child = self.format.child(self.data, &self.record, position)?;
        self.position += 1;
        let nid = Nid(child.raw.ino.get());
        Ok(DirectoryEntry { nid, name: child.name()?, kind: child.kind, next_offset: self.position })
    }
}

impl<'a> Iterator for RecordEntries<'a> {
    type Item = Result<DirectoryEntry<'a>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.position >= self.record.raw.child_count.get().into() {
            return None;
        }
        let result = self.step(self.position);
        if result.is_err() {
            self.position = u64::MAX;
        }
        Some(result)
    }
}
