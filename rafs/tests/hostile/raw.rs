//! Bootstraps of RAFS v6 made by hand, to say what no writer says.

use rafs::layout::v6::{
    CompactInode, Dirent, EXTENSION_OFFSET, ErofsSuperblock, ExtensionSuperblock, FileType,
    INCOMPAT_CHUNKED_FILE, INCOMPAT_DEVICE_TABLE, LAYOUT_INLINE, LAYOUT_PLAIN, MAGIC, SLOT_SIZE,
    SUPERBLOCK_OFFSET,
};
use zerocopy::{FromZeros, IntoBytes};

const BLOCK: usize = 4096;
/// Where nids count from, in blocks: what is before has superblocks and blob table.
const META_BLOCK: usize = 32;

/// A bootstrap under construction: inodes from the first nid on.
pub(crate) struct Raw(pub(crate) Vec<u8>);

impl Raw {
    /// Superblocks, and `blobs` bytes of blob table. The root's nid is 1.
    pub(crate) fn new(blobs: &[u8], blob_count: u16) -> Self {
        let mut bytes = vec![0; META_BLOCK * BLOCK + 2 * SLOT_SIZE as usize];
        let mut sb = ErofsSuperblock::new_zeroed();
        sb.magic.set(MAGIC);
        sb.block_bits = 12;
        sb.root_nid.set(1);
        sb.meta_blkaddr.set(META_BLOCK as u32);
        sb.feature_incompat.set(INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE);
        sb.extra_devices.set(blob_count);
        let mut extension = ExtensionSuperblock::new_zeroed();
        extension.blob_table_offset.set(BLOCK as u64);
        extension.blob_table_size.set(blobs.len() as u32);
        extension.chunk_size.set(4096);
        put(&mut bytes, SUPERBLOCK_OFFSET as usize, sb.as_bytes());
        put(&mut bytes, EXTENSION_OFFSET as usize, extension.as_bytes());
        put(&mut bytes, BLOCK, blobs);
        Self(bytes)
    }

    /// The nid of what is added next.
    pub(crate) fn next_nid(&self) -> u64 {
        (self.0.len() - META_BLOCK * BLOCK) as u64 / SLOT_SIZE
    }

    /// The number of the block that begins at the next block boundary.
    pub(crate) fn next_block(&mut self) -> u32 {
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        (self.0.len() / BLOCK) as u32
    }

    /// Adds an inode and what follows it; gives its nid.
    pub(crate) fn add(&mut self, inode: CompactInode, behind: &[u8]) -> u64 {
        let nid = self.next_nid();
        self.0.extend_from_slice(inode.as_bytes());
        self.0.extend_from_slice(behind);
        self.0.resize(self.0.len().next_multiple_of(SLOT_SIZE as usize), 0);
        nid
    }

    /// Makes the root a directory whose content begins at a block.
    pub(crate) fn root(&mut self, block: u32, size: u32) {
        let root = plain(FileType::Directory, block, size);
        put(&mut self.0, META_BLOCK * BLOCK + SLOT_SIZE as usize, root.as_bytes());
    }

    /// Overwrites an inode.
    pub(crate) fn put_inode(&mut self, nid: u64, inode: CompactInode) {
        put(&mut self.0, META_BLOCK * BLOCK + (nid * SLOT_SIZE) as usize, inode.as_bytes());
    }
}

pub(crate) fn put(bytes: &mut [u8], offset: usize, part: &[u8]) {
    bytes[offset..offset + part.len()].copy_from_slice(part);
}

/// An inode with one name.
pub(crate) fn inode(kind: FileType, layout: u16, union: u32, size: u32) -> CompactInode {
    let mut inode = CompactInode::new_zeroed();
    inode.format.set(layout << 1);
    inode.mode.set(kind.mode() | 0o400);
    inode.links.set(1);
    inode.size.set(size);
    inode.union.set(union);
    inode
}

/// An inode whose content begins at a block.
pub(crate) fn plain(kind: FileType, block: u32, size: u32) -> CompactInode {
    inode(kind, LAYOUT_PLAIN, block, size)
}

/// An inode whose content follows it.
pub(crate) fn inline(kind: FileType, size: usize) -> CompactInode {
    inode(kind, LAYOUT_INLINE, 0, size as u32)
}

/// A block of a directory, or less than one: entries, then their names.
pub(crate) fn entries(entries: &[(&[u8], u64, FileType)]) -> Vec<u8> {
    let mut offset = entries.len() * size_of::<Dirent>();
    let mut bytes = Vec::new();
    for (name, nid, kind) in entries {
        let entry = Dirent {
            nid: (*nid).into(),
            name_offset: (offset as u16).into(),
            file_type: *kind as u8,
            reserved: 0,
        };
        bytes.extend_from_slice(entry.as_bytes());
        offset += name.len();
    }
    entries.iter().for_each(|(name, ..)| bytes.extend_from_slice(name));
    bytes
}
