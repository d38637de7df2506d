//! Filling the inode area in.

use std::collections::BTreeMap;
use std::io::{self, Write};

use zerocopy::IntoBytes;

use super::blobs::BlobSet;
use super::chunks::PlacedChunk;
use super::place::{INODE_SIZE, InodePlace, Places};
use super::{Base, WriteError};
use super::{directory, xattr};
use crate::layout::BLOCK_SIZE;
use crate::layout::blob_meta::UNCOMPRESSED_OFFSET_LIMIT;
use crate::layout::v6::{
    CHUNK_FORMAT_INDEXES, CHUNK_FORMAT_SIZE_MASK, ChunkAddress, ExtendedInode, FORMAT_EXTENDED, FileType,
    LAYOUT_INLINE,
};
use crate::tree::{ChunkRef, DeviceNumber, Kind, Node, Tree};

/// What is known of the inodes before they are written, for what stands in front of them says it.
pub(super) struct Survey {
    /// Every use of a chunk by a file.
    pub(super) chunks: Vec<PlacedChunk>,
    pub(super) has_xattrs: bool,
}

/// Looks at all nodes, and refuses what the format cannot hold.
pub(super) fn survey(tree: &Tree, places: &Places, blobs: &BlobSet<'_>) -> Result<Survey, WriteError> {
    let mut survey = Survey { chunks: Vec::new(), has_xattrs: false };
    let chunk_size = u64::from(blobs.chunk_size);
    for &id in &places.order {
        let node = tree.node(id);
        survey.has_xattrs |= !xattr::encode(&node.metadata.xattrs)?.is_empty();
        match &node.kind {
            Kind::Regular { chunks, .. } => {
                for (position, &chunk) in chunks.iter().enumerate() {
                    address(chunk, blobs)?;
                    survey.chunks.push((chunk, position as u64 * chunk_size));
                }
            }
            Kind::CharDevice(number) | Kind::BlockDevice(number) => _ = device_number(*number)?,
            Kind::Directory(_) | Kind::Symlink(_) | Kind::Fifo | Kind::Socket => {}
        }
    }
    Ok(survey)
}

/// Writes the inode area from its start to its end: it is never in memory as a whole.
pub(super) fn fill(
    tree: &Tree,
    places: &Places,
    blobs: &BlobSet<'_>,
    base: Base,
    out: &mut impl Write,
) -> Result<(), WriteError> {
    let mut area = Area::new(out);
    let mut bytes = Vec::new();
    for &id in &places.order {
        let (node, place) = (tree.node(id), places.of(id));
        let xattrs = xattr::encode(&node.metadata.xattrs)?;
        // The inode comes last, when its union is known.
        bytes.clear();
        bytes.resize(INODE_SIZE as usize, 0);
        bytes.extend_from_slice(&xattrs);
        let union = match &node.kind {
            Kind::Directory(children) => {
                let parent = place.parent.unwrap_or(id);
                let content = directory::content(children, place.size, |target| match target {
                    directory::NameTarget::This => (base.nid(place.inode), FileType::Directory),
                    directory::NameTarget::Parent => (base.nid(places.of(parent).inode), FileType::Directory),
                    directory::NameTarget::Node(child) => {
                        (base.nid(places.of(child).inode), tree.node(child).kind.file_type())
                    }
                });
                area.put_content(place, &content, &mut bytes);
                base.block(place.blocks)?
            }
            Kind::Symlink(target) => {
                area.put_content(place, target, &mut bytes);
                base.block(place.blocks)?
            }
            Kind::Regular { size, chunks } => {
                bytes.resize(bytes.len().next_multiple_of(size_of::<ChunkAddress>()), 0);
                push_chunks(*size, chunks, blobs, &mut bytes)?
            }
            Kind::CharDevice(number) | Kind::BlockDevice(number) => device_number(*number)?,
            Kind::Fifo | Kind::Socket => 0,
        };
        // Checked by `encode`.
        let xattr_count = xattr::count(xattrs.len()).ok_or(WriteError::LargeXattrs(xattrs.len()))?;
        let inode = inode(node, place, xattr_count, union, base.nid(place.inode));
        bytes[..INODE_SIZE as usize].copy_from_slice(inode.as_bytes());
        area.put(place.inode, &bytes)?;
    }
    area.finish(places.area_size)
}

/// The inode area while it is written in order of offsets.
struct Area<'a, W> {
    out: &'a mut W,
    /// How far it is written.
    position: u64,
    /// Blocks further on. Those of an inode are always behind it.
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl<'a, W: Write> Area<'a, W> {
    fn new(out: &'a mut W) -> Self {
        Self { out, position: 0, blocks: BTreeMap::new() }
    }

    /// Keeps what of an inode's content goes to blocks. Its tail, where the layout is inline, goes to `behind`.
    fn put_content(&mut self, place: &InodePlace, content: &[u8], behind: &mut Vec<u8>) {
        let in_blocks = match place.layout {
            LAYOUT_INLINE => content.len() - content.len() % BLOCK_SIZE as usize,
            _ => content.len(),
        };
        let (blocks, tail) = content.split_at(in_blocks);
        if !blocks.is_empty() {
            self.blocks.insert(place.blocks, blocks.to_vec());
        }
        behind.extend_from_slice(tail);
    }

    /// Writes an inode with what is behind it, after everything in front of it.
    fn put(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        while let Some(blocks) = self.blocks.first_entry().filter(|blocks| *blocks.key() < offset) {
            let (offset, content) = blocks.remove_entry();
            self.write_at(offset, &content)?;
        }
        self.write_at(offset, bytes)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        while self.position < offset {
            let gap = (offset - self.position).min(BLOCK_SIZE);
            self.out.write_all(&[0; BLOCK_SIZE as usize][..gap as usize])?;
            self.position += gap;
        }
        self.out.write_all(bytes)?;
        self.position = offset + bytes.len() as u64;
        Ok(())
    }

    /// Writes the rest, up to the size of the area.
    fn finish(mut self, size: u64) -> Result<(), WriteError> {
        Ok(self.put(size, &[])?)
    }
}

/// Appends the chunk addresses of a file and returns its chunk format.
fn push_chunks(
    size: u64,
    chunks: &[ChunkRef],
    blobs: &BlobSet<'_>,
    bytes: &mut Vec<u8>,
) -> Result<u32, WriteError> {
    let chunk_size = u64::from(blobs.chunk_size);
    let mut contiguous = true;
    let mut expected = None;
    for &chunk in chunks {
        let (address, offset) = address(chunk, blobs)?;
        bytes.extend_from_slice(address.as_bytes());
        contiguous &= expected.is_none_or(|expected| expected == (address.device, offset));
        expected = Some((address.device, offset + chunk_size));
    }
    // A file whose chunks follow one another is one large chunk to EROFS, which then maps it in one step.
    // The field has 5 bits.
    let fits = size > chunk_size && size <= 1 << (CHUNK_FORMAT_SIZE_MASK + BLOCK_SIZE.trailing_zeros());
    let effective = if contiguous && fits { size.next_power_of_two() } else { chunk_size };
    Ok(CHUNK_FORMAT_INDEXES | (effective / BLOCK_SIZE).trailing_zeros())
}

/// The address of a chunk, and its offset in the uncompressed blob.
fn address(at: ChunkRef, blobs: &BlobSet<'_>) -> Result<(ChunkAddress, u64), WriteError> {
    let (blob, chunk) = blobs.chunk(at)?;
    let offset = chunk.uncompressed_offset;
    if offset > UNCOMPRESSED_OFFSET_LIMIT || !offset.is_multiple_of(BLOCK_SIZE) {
        return Err(WriteError::ChunkOffset { blob: at.blob.0, chunk: at.chunk.0, offset });
    }
    let index = at.chunk.0;
    let address = ChunkAddress {
        index_low: (index as u16).into(),
        device: blob + 1,
        index_high: u8::try_from(index >> 16)
            .map_err(|_| WriteError::TooLarge("the chunks of a blob (2^24)"))?,
        block: ((offset / BLOCK_SIZE) as u32).into(),
    };
    Ok((address, offset))
}

fn inode(node: &Node, place: &InodePlace, xattr_count: u16, union: u32, nid: u64) -> ExtendedInode {
    let metadata = &node.metadata;
    ExtendedInode {
        format: (FORMAT_EXTENDED | place.layout << 1).into(),
        xattr_count: xattr_count.into(),
        mode: (node.kind.file_type().mode() | metadata.permissions & 0o7777).into(),
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

fn device_number(number: DeviceNumber) -> Result<u32, WriteError> {
    let DeviceNumber { major, minor } = number;
    number.encode().ok_or(WriteError::DeviceNumber { major, minor })
}
