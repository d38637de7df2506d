//! Reading a whole bootstrap into a tree.

use std::collections::{BTreeMap, HashMap};

use super::{At, Bootstrap, ChunkUse, Nid, ReadError};
use crate::blob::{Blob, BlobIndex, Chunk, ChunkIndex};
use crate::bootstrap::{Found, Visitor, walk};
use crate::digest::Digest;
use crate::layout::v6::FileType;
use crate::limits::Limits;
use crate::tree::{ChunkRef, Image, Kind, Layer, Metadata, Node, NodeId, Tree};

/// Chunks that are counted but not described cost memory, 72 bytes each; this many are allowed in addition to a number of them
/// for each that is described.
const FREE_CHUNKS: u64 = 1 << 20;
const CHUNKS_PER_ENTRY: u64 = 16;

impl Bootstrap {
    /// The whole image as a tree. A chunk that nothing refers to may be unknown: its sizes are 0.
    ///
    /// # Errors
    ///
    /// When anything in it is broken; directories with two names and overlapping directories count as broken.
    pub fn to_image(&self) -> Result<Image, ReadError> {
        self.read_image().map_err(|error| self.named(error))
    }

    fn read_image(&self) -> Result<Image, ReadError> {
        let blobs = self.blobs_with_chunks()?;
        let mut reader = TreeReader {
            bootstrap: self,
            blobs: &blobs,
            seen: HashMap::new(),
            open: Vec::new(),
            tree: Tree::new(),
        };
        walk(self, Limits::DEFAULT, &mut reader)?;
        let tree = reader.tree;
        self.sound()?;
        Ok(Image { tree, blobs })
    }

    /// The whole bootstrap of one layer, where whiteouts are entries. See [`to_image`](Self::to_image).
    ///
    /// # Errors
    ///
    /// As [`to_image`](Self::to_image).
    pub fn to_layer(&self) -> Result<Layer, ReadError> {
        let Image { tree, blobs } = self.to_image()?;
        Ok(Layer { tree, blobs })
    }

    /// The blobs with all that is known of their chunks.
    ///
    /// # Errors
    ///
    /// When the chunk table is broken, or blobs count far more chunks than the bootstrap describes.
    pub fn blobs_with_chunks(&self) -> Result<Vec<Blob>, ReadError> {
        self.check_chunk_counts()?;
        let mut blobs = self.blobs.clone();
        let table = self.described_chunks()?;
        for (blob, &count) in blobs.iter_mut().zip(&self.chunk_counts) {
            blob.chunks = vec![UNKNOWN_CHUNK; count as usize];
        }
        for entry in table {
            let (blob, index, chunk) = entry?;
            let slot = blobs[usize::from(blob.0)].chunks.get_mut(index.0 as usize);
            *slot.ok_or(ReadError::NoSuchChunk { blob: blob.0, chunk: index.0 })? = chunk;
        }
        for (index, meta) in self.metas.iter().enumerate() {
            let Some(meta) = meta else { continue };
            for (position, slot) in blobs[index].chunks.iter_mut().enumerate() {
                let blob = index as u8;
                let info = meta.chunk(ChunkIndex(position as u32));
                let info = info.map_err(|source| ReadError::ChunkInfo { blob, source })?;
                let digest = info.digest.unwrap_or(slot.digest);
                *slot = info.with_digest(digest);
            }
        }
        Ok(blobs)
    }

    /// What is known of a blob's chunks, in order of their index. An image's bootstrap may describe only those that the
    /// image uses.
    ///
    /// # Errors
    ///
    /// As [`blobs_with_chunks`](Self::blobs_with_chunks).
    pub fn known_chunks(
        &self,
        blob: BlobIndex,
    ) -> Result<impl Iterator<Item = Result<(ChunkIndex, Chunk), ReadError>> + '_, ReadError> {
        self.check_chunk_counts()?;
        let indexes = (0..self.chunk_count(blob)).map(ChunkIndex);
        Ok(indexes.filter_map(move |index| match self.chunk(blob, index) {
            Ok(chunk) => Some(Ok((index, chunk))),
            Err(ReadError::NoSuchChunk { .. }) => None,
            Err(error) => Some(Err(error)),
        }))
    }

    /// Refuses counts that would cost far more than the bootstrap's size to go through.
    ///
    /// # Errors
    ///
    /// When there are such, or the chunk table is broken.
    pub(crate) fn check_chunk_counts(&self) -> Result<(), ReadError> {
        let mut known = self.described_chunks()?.len() as u64;
        known += self.metas.iter().flatten().map(|meta| u64::from(meta.len())).sum::<u64>();
        let claimed: u64 = self.chunk_counts.iter().map(|&count| u64::from(count)).sum();
        if claimed > FREE_CHUNKS + CHUNKS_PER_ENTRY * known {
            let expected = "not many times more chunks in blobs than the bootstrap describes";
            return Err(ReadError::corrupt("blob table", At::Byte(0), expected));
        }
        Ok(())
    }
}

/// Stands for a chunk that is counted, but of which the bootstrap says nothing.
const UNKNOWN_CHUNK: Chunk = Chunk {
    digest: Digest([0; 32]),
    compressed_offset: 0,
    compressed_size: 0,
    uncompressed_offset: 0,
    uncompressed_size: 0,
    compressed: false,
    batch: None,
};

/// Reads the tree of a bootstrap.
struct TreeReader<'a> {
    bootstrap: &'a Bootstrap,
    /// The blobs with their chunks.
    blobs: &'a [Blob],
    seen: HashMap<Nid, NodeId>,
    /// The directory that is being read, behind those that it is in.
    open: Vec<NodeId>,
    tree: Tree,
}

impl Visitor for TreeReader<'_> {
    type Error = ReadError;

    fn enter(&mut self, found: &Found<'_>) -> Result<(), ReadError> {
        let Some(directory) = self.open.last().copied() else {
            self.tree.node_mut(Tree::ROOT).metadata = self.metadata(found)?;
            self.open.push(Tree::ROOT);
            return Ok(());
        };
        let node = match self.seen.get(&found.nid) {
            Some(node) => *node,
            None => self.node(found)?,
        };
        if let Some(entries) = self.tree.entries_mut(directory) {
            entries.insert(found.name().into(), node);
        }
        if found.inode.kind == FileType::Directory {
            self.open.push(node);
        }
        Ok(())
    }

    fn leave(&mut self, _path: &[u8], _nid: Nid) -> Result<(), ReadError> {
        self.open.pop();
        Ok(())
    }
}

impl TreeReader<'_> {
    /// The chunk of a file, which must be known: only chunks that nothing refers to may be unknown.
    fn chunk(&self, piece: ChunkUse) -> Result<ChunkRef, ReadError> {
        let (blob, chunk) = (piece.blob, piece.chunk);
        let known = self.blobs[usize::from(blob.0)].chunks.get(chunk.0 as usize);
        match known {
            Some(known) if known.uncompressed_size > 0 => Ok(ChunkRef { blob, chunk }),
            _ => Err(ReadError::NoSuchChunk { blob: blob.0, chunk: chunk.0 }),
        }
    }

    fn metadata(&self, Found { nid, inode, .. }: &Found<'_>) -> Result<Metadata, ReadError> {
        Ok(Metadata {
            permissions: inode.permissions,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            xattrs: self.bootstrap.xattrs(*nid)?,
        })
    }

    fn node(&mut self, found: &Found<'_>) -> Result<NodeId, ReadError> {
        let (nid, inode) = (found.nid, &found.inode);
        let kind = match inode.kind {
            FileType::Directory => Kind::Directory(BTreeMap::new()),
            FileType::Regular => {
                let pieces = self.bootstrap.chunks(nid, 0..inode.size)?;
                let chunks = pieces.map(|piece| self.chunk(piece?));
                Kind::Regular { size: inode.size, chunks: chunks.collect::<Result<_, _>>()? }
            }
            FileType::Symlink => Kind::Symlink(self.bootstrap.read_link(nid)?.into()),
            FileType::CharDevice => Kind::CharDevice(inode.rdev),
            FileType::BlockDevice => Kind::BlockDevice(inode.rdev),
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
        };
        let node = self.tree.add(Node { metadata: self.metadata(found)?, kind });
        self.seen.insert(nid, node);
        Ok(node)
    }
}
