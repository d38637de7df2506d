//! Filling the inode area in.

use zerocopy::IntoBytes;

use super::blobs::BlobSet;
use super::chunks::ChunkUse;
use super::place::{INODE_SIZE, Place, Places};
use super::{Base, WriteError};
use super::{directory, xattr};
use crate::layout::BLOCK_SIZE;
use crate::layout::blob_meta::MAX_UNCOMPRESSED_OFFSET;
use crate::layout::v6::{
    CHUNK_FORMAT_INDEXES, CHUNK_FORMAT_SIZE_MASK, ChunkAddress, ExtendedInode, FORMAT_EXTENDED, FileType,
    LAYOUT_INLINE,
};
use crate::tree::{ChunkRef, DeviceNumber, Kind, Node, Tree};

/// The inode area, and what was met while filling it in.
pub(super) struct Filled {
    pub(super) area: Vec<u8>,
    pub(super) chunks: Vec<ChunkUse>,
    pub(super) has_xattrs: bool,
}

pub(super) fn fill(
    tree: &Tree,
    places: &Places,
    blobs: &BlobSet<'_>,
    base: Base,
) -> Result<Filled, WriteError> {
    let size = usize::try_from(places.area_size).map_err(|_| WriteError::TooLarge("the inodes"))?;
    let mut filled = Filled { area: vec![0; size], chunks: Vec::new(), has_xattrs: false };
    for &id in &places.order {
        let (node, place) = (tree.node(id), places.of(id));
        let xattrs = xattr::encode(&node.metadata.xattrs)?;
        filled.has_xattrs |= !xattrs.is_empty();
        let behind = place.inode + INODE_SIZE + xattrs.len() as u64;

        let union = match &node.kind {
            Kind::Directory(children) => {
                let parent = place.parent.unwrap_or(id);
                let content = directory::content(children, place.size, |target| match target {
                    directory::Target::This => (base.nid(place.inode), FileType::Directory),
                    directory::Target::Parent => (base.nid(places.of(parent).inode), FileType::Directory),
                    directory::Target::Node(child) => {
                        (base.nid(places.of(child).inode), file_type(tree.node(child)))
                    }
                });
                filled.put_content(place, behind, &content);
                base.block(place.blocks)?
            }
            Kind::Symlink(target) => {
                filled.put_content(place, behind, target);
                base.block(place.blocks)?
            }
            Kind::Regular { size, chunks } => {
                filled.put_chunks(*size, chunks, behind.next_multiple_of(8), blobs)?
            }
            Kind::CharDevice(number) | Kind::BlockDevice(number) => device_number(*number)?,
            Kind::Fifo | Kind::Socket => 0,
        };

        // Checked by `encode`.
        let xattr_count = xattr::count(xattrs.len()).ok_or(WriteError::LargeXattrs(xattrs.len()))?;
        filled.put(place.inode, inode(node, place, xattr_count, union, base.nid(place.inode)).as_bytes());
        filled.put(place.inode + INODE_SIZE, &xattrs);
    }
    Ok(filled)
}

impl Filled {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let start = offset as usize;
        self.area[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// Puts content into its blocks and, where the layout is inline, its tail behind the inode.
    fn put_content(&mut self, place: &Place, behind: u64, content: &[u8]) {
        let in_blocks = match place.layout {
            LAYOUT_INLINE => content.len() - content.len() % BLOCK_SIZE as usize,
            _ => content.len(),
        };
        let (blocks, tail) = content.split_at(in_blocks);
        self.put(place.blocks, blocks);
        self.put(behind, tail);
    }

    /// Puts the chunk addresses of a file and returns its chunk format.
    fn put_chunks(
        &mut self,
        size: u64,
        chunks: &[ChunkRef],
        mut at: u64,
        blobs: &BlobSet<'_>,
    ) -> Result<u32, WriteError> {
        let chunk_size = u64::from(blobs.chunk_size);
        let mut contiguous = true;
        let mut expected = None;
        for (position, &chunk_ref) in chunks.iter().enumerate() {
            let (blob, chunk) = blobs.chunk(chunk_ref)?;
            let offset = chunk.uncompressed_offset;
            if offset > MAX_UNCOMPRESSED_OFFSET || !offset.is_multiple_of(BLOCK_SIZE) {
                let (blob, chunk) = (chunk_ref.blob.0, chunk_ref.chunk.0);
                return Err(WriteError::ChunkOffset { blob, chunk, offset });
            }
            let index = chunk_ref.chunk.0;
            let address = ChunkAddress {
                index_low: (index as u16).into(),
                device: blob + 1,
                index_high: u8::try_from(index >> 16)
                    .map_err(|_| WriteError::TooLarge("the chunks of a blob (2^24)"))?,
                block: ((offset / BLOCK_SIZE) as u32).into(),
            };
            self.put(at, address.as_bytes());
            at += size_of::<ChunkAddress>() as u64;
            contiguous &= expected.is_none_or(|expected| expected == (blob, offset));
            expected = Some((blob, offset + chunk_size));
            self.chunks.push((chunk_ref, position as u64 * chunk_size));
        }
        // A file whose chunks follow one another is one large chunk to EROFS, which then maps it in one step.
        // The field has 5 bits.
        let fits = size > chunk_size && size <= 1 << (CHUNK_FORMAT_SIZE_MASK + BLOCK_SIZE.trailing_zeros());
        let effective = if contiguous && fits { size.next_power_of_two() } else { chunk_size };
        Ok(CHUNK_FORMAT_INDEXES | (effective / BLOCK_SIZE).trailing_zeros())
    }
}

fn inode(node: &Node, place: &Place, xattr_count: u16, union: u32, nid: u64) -> ExtendedInode {
    let metadata = &node.metadata;
    ExtendedInode {
        format: (FORMAT_EXTENDED | place.layout << 1).into(),
        xattr_count: xattr_count.into(),
        mode: (file_type(node).mode() | metadata.permissions & 0o7777).into(),
        reserved: 0.into(),
        size: place.size.into(),
        union: union.into(),
        // Only 32-bit programs see this number; a 64-bit one has the nid.
        ino: (nid as u32).into(),
        uid: metadata.uid.into(),
        gid: metadata.gid.into(),
        mtime: metadata.mtime.seconds.cast_unsigned().into(),
        mtime_nsec: metadata.mtime.nanoseconds.into(),
        links: place.links.into(),
        reserved2: [0; 16],
    }
}

fn file_type(node: &Node) -> FileType {
    match node.kind {
        Kind::Directory(_) => FileType::Directory,
        Kind::Regular { .. } => FileType::Regular,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::CharDevice(_) => FileType::CharDevice,
        Kind::BlockDevice(_) => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
    }
}

/// A device number as Linux encodes it in 32 bits.
fn device_number(number: DeviceNumber) -> Result<u32, WriteError> {
    let DeviceNumber { major, minor } = number;
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err(WriteError::DeviceNumber { major, minor });
    }
    Ok((minor & 0xff) | major << 8 | (minor & !0xff) << 12)
}
