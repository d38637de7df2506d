//! Writing a bootstrap: give every inode its place, then fill the places in.

mod blobs;
mod chunks;
mod directory;
mod fill;
mod place;
mod space;
mod xattr;

use std::collections::HashSet;
use std::io::{self, BufWriter, Write};

use zerocopy::FromZeros;
use zerocopy::IntoBytes;

use crate::blob::Blob;
use crate::compress::Compressor;
use crate::digest::DigestAlgorithm;
use crate::layout::v6::{
    BlobEntry, COMPAT_RAFS_V6, DEVICE_TABLE_OFFSET, DeviceSlot, ErofsSuperblock, ExtensionSuperblock,
    INCOMPAT_CHUNKED_FILE, INCOMPAT_DEVICE_TABLE, MAGIC, SLOT_SIZE, SUPERBLOCK_OFFSET,
};
use crate::layout::{
    BLOCK_SIZE, PATH_LIMIT_BYTES, XATTR_VALUE_LIMIT_BYTES, XATTRS_LIMIT_BYTES, align_to_block, flags,
};
use crate::tree::{Image, Layer, Tree};

/// Output is gathered to this many bytes.
const BUFFER_BYTES: usize = 64 << 10;

/// How to write a bootstrap.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Paths whose files a daemon should fetch first; directories stand for all below them. Paths that the image does
    /// not have are left out.
    pub prefetch: Vec<Box<[u8]>>,
    /// Chunk size in bytes to state where no blob says it.
    pub chunk_size: u32,
    /// Compressor to state where no blob says it.
    pub compressor: Compressor,
    /// Digest algorithm to state where no blob says it.
    pub digester: DigestAlgorithm,
}

impl Default for WriteOptions {
    /// nydus-image's defaults: no prefetch, 1 MiB, zstd, BLAKE3.
    fn default() -> Self {
        Self {
            prefetch: Vec::new(),
            chunk_size: 1 << 20,
            compressor: Compressor::default(),
            digester: DigestAlgorithm::default(),
        }
    }
}

/// Why a bootstrap cannot be written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum WriteError {
    #[error("cannot write the bootstrap")]
    Io(#[from] io::Error),
    #[error("the image uses {count} blobs; RAFS v6 allows {limit}")]
    TooManyBlobs { count: usize, limit: usize },
    #[error(
        "blob {blob} has a chunk size of {found} bytes, others of {expected}: an image has one chunk size"
    )]
    ChunkSizes { blob: usize, found: u32, expected: u32 },
    #[error("chunk size {0} is no power of two from 4 KiB to 16 MiB")]
    ChunkSize(u32),
    #[error("blob {0} has no id: only a layer's own blob may be without one")]
    UnknownBlobId(usize),
    #[error("a file refers to chunk {chunk} of blob {blob}, which does not exist")]
    MissingChunk { blob: u8, chunk: u32 },
    #[error(
        "chunk {chunk} of blob {blob} is at uncompressed offset {offset}, which is no multiple of 4 KiB below 2^44"
    )]
    ChunkOffset { blob: u8, chunk: u32, offset: u64 },
    #[error("a file of {size} bytes has {found} chunks; expected {expected}")]
    ChunkCount { size: u64, found: usize, expected: u64 },
    #[error(
        "directory entry {0:?} is no name of 1 to 255 bytes without '/' and NUL, other than '.' and '..'"
    )]
    BadName(String),
    #[error("a directory has two names")]
    LinkedDirectory,
    #[error("a symbolic link's target has {0} bytes; at most {PATH_LIMIT_BYTES} are allowed")]
    LongSymlink(usize),
    #[error(
        "extended attribute {name:?} has a value of {size} bytes; at most {XATTR_VALUE_LIMIT_BYTES} are allowed"
    )]
    LargeXattr { name: String, size: usize },
    #[error("an inode has {0} bytes of extended attributes; at most {XATTRS_LIMIT_BYTES} are allowed")]
    LargeXattrs(usize),
    #[error("device number {major}:{minor} does not fit: the major number has 12 bits, the minor number 20")]
    DeviceNumber { major: u32, minor: u32 },
    #[error("the image is too large for RAFS v6: {0}")]
    TooLarge(&'static str),
}

/// Writes the bootstrap of an image. Blobs without chunks are left out. The same image gives the same bytes.
///
/// # Errors
///
/// When the output fails, or the image does not fit the format.
pub fn write(image: &Image, options: &WriteOptions, out: &mut impl Write) -> Result<(), WriteError> {
    write_tree(&image.tree, &image.blobs, false, options, out)
}

/// Writes the bootstrap of one layer, as it is stored in the layer's blob: the layer's own blob, the first, has the id
/// `"x" × 64`, and whiteouts are entries.
///
/// # Errors
///
/// When the output fails, or the layer does not fit the format.
pub fn write_layer(layer: &Layer, options: &WriteOptions, out: &mut impl Write) -> Result<(), WriteError> {
    write_tree(&layer.tree, &layer.blobs, true, options, out)
}

fn write_tree(
    tree: &Tree,
    blobs: &[Blob],
    own_first: bool,
    options: &WriteOptions,
    out: &mut impl Write,
) -> Result<(), WriteError> {
    let blobs = blobs::BlobSet::new(blobs, own_first, options)?;
    let places = place::Places::new(tree, blobs.chunk_size)?;
    let prefetch = prefetch_nodes(tree, options);

    // The parts in file order. The blob table is at a block boundary; inodes follow it (and the prefetch table).
    let too_large = WriteError::TooLarge("the blob table");
    let count = blobs.used.len() as u64;
    let blob_table =
        align_to_block(DEVICE_TABLE_OFFSET + count * size_of::<DeviceSlot>() as u64).ok_or(too_large)?;
    let prefetch_table = blob_table + count * size_of::<BlobEntry>() as u64;
    let inodes = prefetch_table + prefetch.len() as u64 * 4;
    let inodes = align_to_block(inodes).ok_or(WriteError::TooLarge("the prefetch table"))?;
    let chunk_table = inodes + places.area_size;

    // Nids count from one block before the first inode, so that the root's nid is not 0: C libraries hide such entries.
    let base = Base { inodes, meta: inodes - BLOCK_SIZE };
    let survey = fill::survey(tree, &places, &blobs)?;
    let chunks = chunks::Table::new(survey.chunks);
    let end = align_to_block(chunk_table + chunks.size()).ok_or(WriteError::TooLarge("the chunk table"))?;
    let slots = blobs.device_slots(end)?;

    let mut head = vec![0; SUPERBLOCK_OFFSET as usize];
    head.extend_from_slice(superblock(&places, &slots, base)?.as_bytes());
    let mut extension = ExtensionSuperblock::new_zeroed();
    extension
        .flags
        .set(blobs.superblock_flags() | if survey.has_xattrs { flags::superblock::HAS_XATTR } else { 0 });
    extension.blob_table_offset.set(blob_table);
    extension.blob_table_size.set((prefetch_table - blob_table) as u32);
    extension.chunk_size.set(blobs.chunk_size);
    extension.chunk_table_offset.set(chunk_table);
    extension.chunk_table_size.set(chunks.size());
    if !prefetch.is_empty() {
        extension.prefetch_table_offset.set(prefetch_table);
        extension.prefetch_table_size.set(prefetch.len() as u32 * 4);
    }
    head.extend_from_slice(extension.as_bytes());
    head.extend_from_slice(slots.as_bytes());
    head.resize(blob_table as usize, 0);
    head.extend_from_slice(blobs.entries().as_bytes());
    for node in prefetch {
        let nid =
            u32::try_from(base.nid(places.of(node).inode)).map_err(|_| WriteError::TooLarge("the inodes"))?;
        head.extend_from_slice(&nid.to_le_bytes());
    }
    head.resize(inodes as usize, 0);

    // Inodes and chunk entries are small.
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, out);
    out.write_all(&head)?;
    fill::fill(tree, &places, &blobs, base, &mut out)?;
    chunks.write(&blobs, &mut out)?;
    out.write_all(&vec![0; (end - chunk_table - chunks.size()) as usize])?;
    // Not `flush`: that would make a compressor behind it end its block.
    out.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(())
}

/// Where the inodes are.
#[derive(Clone, Copy)]
struct Base {
    /// Offset in the file of the first inode, to which all places are relative.
    inodes: u64,
    /// Offset in the file from which nids count.
    meta: u64,
}

impl Base {
    fn nid(self, place: u64) -> u64 {
        (self.inodes - self.meta + place) / SLOT_SIZE
    }

    fn block(self, place: u64) -> Result<u32, WriteError> {
        u32::try_from((self.inodes + place) / BLOCK_SIZE).map_err(|_| WriteError::TooLarge("the inodes"))
    }
}

fn superblock(
    places: &place::Places,
    slots: &[DeviceSlot],
    base: Base,
) -> Result<ErofsSuperblock, WriteError> {
    let mut sb = ErofsSuperblock::new_zeroed();
    let root = base.nid(places.of(Tree::ROOT).inode);
    let blocks = slots.iter().map(|slot| u64::from(slot.blocks.get())).sum::<u64>();
    sb.magic.set(MAGIC);
    sb.feature_compat.set(COMPAT_RAFS_V6);
    sb.feature_incompat.set(INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE);
    sb.block_bits = BLOCK_SIZE.trailing_zeros() as u8;
    sb.root_nid.set(u16::try_from(root).map_err(|_| WriteError::TooLarge("the root directory"))?);
    sb.inodes.set(places.inodes);
    sb.blocks.set(u32::try_from(blocks).map_err(|_| WriteError::TooLarge("the data of all blobs (16 TiB)"))?);
    sb.meta_blkaddr
        .set(u32::try_from(base.meta / BLOCK_SIZE).map_err(|_| WriteError::TooLarge("the inodes"))?);
    sb.extra_devices.set(slots.len() as u16);
    sb.device_slot_offset.set((DEVICE_TABLE_OFFSET / size_of::<DeviceSlot>() as u64) as u16);
    Ok(sb)
}

/// The nodes of the prefetch list, each once, in the list's order.
fn prefetch_nodes(tree: &Tree, options: &WriteOptions) -> Vec<crate::tree::NodeId> {
    let mut nodes = Vec::new();
    let mut listed = HashSet::new();
    for path in &options.prefetch {
        let names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        match tree.lookup(names) {
            Some(node) if listed.insert(node) => nodes.push(node),
            Some(_) => {}
            None => tracing::debug!(path = %path.escape_ascii(), "prefetch: no such path"),
        }
    }
    nodes
}
