//! Directories.

use super::RafsV6;
use super::inode::RawInode;
use crate::bootstrap::read::data::Data;
use crate::bootstrap::read::format::Directories;
use crate::bootstrap::read::search::search;
use crate::bootstrap::read::{At, Directory, DirectoryEntry, Nid, ReadError};
use crate::layout::v6::{Dirent, FileType};
use crate::layout::{BLOCK_SIZE, is_name};

const ENTRY_SIZE: usize = size_of::<Dirent>();

/// One block of a directory: entries, then their names.
#[derive(Clone, Copy, Debug)]
struct Block<'a> {
    bytes: &'a [u8],
    entries: &'a [Dirent],
    directory: Nid,
}

impl<'a> Block<'a> {
    fn new(data: &'a Data, directory: &RawInode, nid: Nid, index: u64) -> Result<Self, ReadError> {
        let corrupt = |expected| ReadError::corrupt("directory", At::Number(nid.0), expected);
        let start = index.checked_mul(BLOCK_SIZE).filter(|start| *start < directory.size);
        let start = start.ok_or(corrupt("a block within the directory"))?;
        let bytes = directory.content(data, start, (directory.size - start).min(BLOCK_SIZE))?;
        let (first, _) = zerocopy::Ref::<&[u8], Dirent>::from_prefix(bytes)
            .map_err(|_| corrupt("at least one entry a block"))?;
        let names = usize::from(first.name_offset.get());
        let entries =
            bytes.get(..names).filter(|entries| !entries.is_empty() && entries.len() % ENTRY_SIZE == 0);
        let entries = entries.ok_or(corrupt("the first name behind the last entry"))?;
        let entries = zerocopy::FromBytes::ref_from_bytes(entries).expect("a multiple of the entry size");
        Ok(Self { bytes, entries, directory: nid })
    }

    fn corrupt(&self, expected: &'static str) -> ReadError {
        ReadError::corrupt("directory", At::Number(self.directory.0), expected)
    }

    /// The name of an entry of this block.
    fn name(&self, index: usize) -> Result<&'a [u8], ReadError> {
        let start = usize::from(self.entries[index].name_offset.get());
        let name = match self.entries.get(index + 1) {
            Some(next) => self.bytes.get(start..usize::from(next.name_offset.get())),
            // The last name ends at the first NUL, or with the block.
            None => self.bytes.get(start..).and_then(|rest| rest.split(|&byte| byte == 0).next()),
        };
        name.filter(|name| is_name(name))
            .ok_or_else(|| self.corrupt("names of 1 to 255 bytes without '/' and NUL, within the block"))
    }
}

impl Directories for RafsV6 {
    fn lookup(&self, data: &Data, directory: Nid, name: &[u8]) -> Result<Option<Nid>, ReadError> {
        let inode = self.raw_inode(data, directory)?.expect_directory()?;
        let block = |number| Block::new(data, &inode, directory, number);
        // The last block whose first name is not greater, and then an entry of it.
        let number = match search(0..inode.size.div_ceil(BLOCK_SIZE), name, |number| block(number)?.name(0))?
        {
            Ok(number) => number,
            Err(0) => return Ok(None),
            Err(next) => next - 1,
        };
        let block = block(number)?;
        let found = search(0..block.entries.len() as u64, name, |entry| block.name(entry as usize))?;
        Ok(found.ok().map(|entry| Nid(block.entries[entry as usize].nid.get())))
    }

    fn read_dir<'a>(
        &'a self,
        data: &'a Data,
        directory: Nid,
        offset: u64,
    ) -> Result<Directory<'a>, ReadError> {
        let inode = self.raw_inode(data, directory)?.expect_directory()?;
        let (index, entry) = (offset / BLOCK_SIZE, (offset % BLOCK_SIZE) as usize);
        Ok(Directory::new(BlockEntries { data, inode, nid: directory, index, entry, block: None }))
    }

    fn directory_size(&self, data: &Data, directory: Nid) -> Result<u64, ReadError> {
        Ok(self.raw_inode(data, directory)?.size)
    }
}

/// The entries of a directory. An offset is the block's number times 4,096 plus the entry's number in it.
struct BlockEntries<'a> {
    data: &'a Data,
    inode: RawInode,
    nid: Nid,
    index: u64,
    entry: usize,
    block: Option<Block<'a>>,
}

impl<'a> BlockEntries<'a> {
    fn step(&mut self) -> Result<Option<DirectoryEntry<'a>>, ReadError> {
        while self.index < self.inode.size.div_ceil(BLOCK_SIZE) {
            let block = match self.block {
                Some(block) => block,
                None => *self.block.insert(Block::new(self.data, &self.inode, self.nid, self.index)?),
            };
            let Some(raw) = block.entries.get(self.entry) else {
                (self.index, self.entry, self.block) = (self.index + 1, 0, None);
                continue;
            };
            let name = block.name(self.entry)?;
            self.entry += 1;
            if name == b"." || name == b".." {
                continue;
            }
            let kind = file_type(raw.file_type).ok_or_else(|| block.corrupt("a known file type"))?;
            let next_offset = self.index * BLOCK_SIZE + self.entry as u64;
            return Ok(Some(DirectoryEntry { nid: Nid(raw.nid.get()), name, kind, next_offset }));
        }
        Ok(None)
    }
}

impl<'a> Iterator for BlockEntries<'a> {
    type Item = Result<DirectoryEntry<'a>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let result = self.step();
        if result.is_err() {
            self.index = u64::MAX;
        }
        result.transpose()
    }
}

fn file_type(number: u8) -> Option<FileType> {
    [
        FileType::Regular,
        FileType::Directory,
        FileType::CharDevice,
        FileType::BlockDevice,
        FileType::Fifo,
        FileType::Socket,
        FileType::Symlink,
    ]
    .into_iter()
    .find(|kind| *kind as u8 == number)
}
