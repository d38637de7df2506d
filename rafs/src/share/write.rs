//! The blobs that a decision gives, their chunks copied as they are stored.

use std::io::{self, Write};

use super::{ChunkHome, Holders, content};
use crate::blob::stream::{BlobWriter, FinishError};
use crate::blob::{Blob, BlobIndex, Chunk, ChunkIndex};
use crate::bootstrap::WriteOptions;
use crate::layout::{BLOCK_SIZE, STORED_LIMIT_BYTES};
use crate::tree::{ChunkRef, Kind, Layer, Tree};

/// Chunks that follow one another are copied together, up to this many bytes.
const COPY_BYTES: u64 = 1 << 20;

/// Why a blob was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum WriteSharedError {
    #[error("cannot read what is stored of layer {layer}: {source}")]
    Read { layer: String, source: io::Error },
    #[error("cannot write the blob: {0}")]
    Write(#[from] io::Error),
    #[error(transparent)]
    Finish(#[from] FinishError),
    #[error("the layer has no blob of its own")]
    NoBlob,
    #[error("chunk {0} is in a batch: chunks that are to be shared must be stored one by one")]
    Batch(u32),
    #[error("chunk {0} is not there")]
    NoChunk(u32),
    #[error("the layer would use more than {limit} blobs")]
    TooManyBlobs { limit: usize },
    #[error("the blob would have more than {limit} stored bytes")]
    TooLarge { limit: u64 },
}

/// A layer's own blob as it is stored now: its chunks, and a way to read its stream.
pub trait SharedSource {
    /// What it is, for messages.
    fn name(&self) -> String;

    /// Fills `out` with the bytes from `offset` of the stream on.
    ///
    /// # Errors
    ///
    /// When they are not there.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
}

/// Copies stored bytes, those that follow one another together, and gives chunks their places.
struct Copier<'a, W> {
    out: BlobWriter<W>,
    chunks: Vec<Chunk>,
    uncompressed: u64,
    /// What is still to be copied, and from where.
    pending: Option<(&'a dyn SharedSource, std::ops::Range<u64>)>,
    stored: u64,
    buffer: Vec<u8>,
}

impl<'a, W: Write> Copier<'a, W> {
    fn new(out: W) -> Self {
        let out = BlobWriter::new(out);
        Self { out, chunks: Vec::new(), uncompressed: 0, pending: None, stored: 0, buffer: Vec::new() }
    }

    /// Adds a chunk whose bytes are in `source`; returns its index.
    fn add(
        &mut self,
        source: &'a dyn SharedSource,
        index: u32,
        chunk: &Chunk,
    ) -> Result<ChunkIndex, WriteSharedError> {
        if chunk.batch.is_some() {
            return Err(WriteSharedError::Batch(index));
        }
        let size = u64::from(chunk.compressed_size);
        if self.stored + size > STORED_LIMIT_BYTES {
            return Err(WriteSharedError::TooLarge { limit: STORED_LIMIT_BYTES });
        }
        // Layers that share much share runs of chunks: a run is one read, which may be a request to a registry.
        let range = chunk.compressed_offset..chunk.compressed_offset + size;
        let follows = |(from, pending): &(&dyn SharedSource, std::ops::Range<u64>)| {
            std::ptr::addr_eq(*from, source)
                && pending.end == range.start
                && range.end - pending.start <= COPY_BYTES
        };
        if self.pending.as_ref().is_some_and(follows) {
            if let Some((_, pending)) = &mut self.pending {
                pending.end = range.end;
            }
        } else {
            self.flush()?;
            self.pending = Some((source, range));
        }
        let number = self.chunks.len() as u32;
        self.chunks.push(Chunk {
            compressed_offset: self.stored,
            uncompressed_offset: self.uncompressed,
            ..chunk.clone()
        });
        self.stored += size;
        self.uncompressed += u64::from(chunk.uncompressed_size).next_multiple_of(BLOCK_SIZE);
        Ok(ChunkIndex(number))
    }

    fn flush(&mut self) -> Result<(), WriteSharedError> {
        let Some((source, range)) = self.pending.take() else { return Ok(()) };
        self.buffer.resize((range.end - range.start) as usize, 0);
        let read = source.read_at(range.start, &mut self.buffer);
        read.map_err(|error| WriteSharedError::Read { layer: source.name(), source: error })?;
        Ok(self.out.write_all(&self.buffer)?)
    }

    /// Ends the blob, whose properties are those of `like`, as the own one of a layer.
    fn finish(
        mut self,
        like: &Blob,
        tree: Tree,
        others: Vec<Blob>,
        options: &WriteOptions,
    ) -> Result<Layer, WriteSharedError> {
        self.flush()?;
        let own = Blob {
            chunks: self.chunks,
            compressed_size: self.stored,
            uncompressed_size: self.uncompressed,
            ..like.clone_properties()
        };
        let blobs = std::iter::once(own).chain(others).collect();
        let mut layer = Layer { tree, blobs };
        self.out.finish(&mut layer, options)?;
        Ok(layer)
    }
}

impl Blob {
    /// The blob without its chunks.
    fn clone_properties(&self) -> Self {
        let Self { id, stored_size, compressed_size, uncompressed_size, .. } = *self;
        let Self { chunk_size, compressor, digester, features, meta, toc, .. } = *self;
        Self {
            id,
            stored_size,
            compressed_size,
            uncompressed_size,
            chunk_size,
            compressor,
            digester,
            features,
            meta,
            toc,
            chunks: Vec::new(),
        }
    }
}

/// Writes the blob of a layer with those chunks alone whose `place` is its own; its files refer to the others where they are: in
/// `stored`, or in `shared`. Returns the layer as it is now.
///
/// # Errors
///
/// When something cannot be read or written, or the layer would use too many blobs.
pub fn rewrite(
    layer: Layer,
    source: &impl SharedSource,
    place: impl Fn(&Chunk) -> ChunkHome,
    stored: &Holders,
    shared: Option<&Blob>,
    options: &WriteOptions,
    out: impl Write,
) -> Result<Layer, WriteSharedError> {
    let Layer { mut tree, blobs } = layer;
    let own = blobs.into_iter().next().ok_or(WriteSharedError::NoBlob)?;
    let mut copier = Copier::new(out);
    let mut others: Vec<Blob> = Vec::new();
    let mut slots: std::collections::HashMap<Option<usize>, BlobIndex> = std::collections::HashMap::new();
    let mut moved = Vec::with_capacity(own.chunks.len());
    // Chunks come before files: what is left of them is numbered in their order, and files refer to the new numbers.
    for (index, chunk) in (0u32..).zip(&own.chunks) {
        let (key, blob, at) = match place(chunk) {
            ChunkHome::Own => {
                let chunk = copier.add(source, index, chunk)?;
                moved.push(ChunkRef { blob: BlobIndex(0), chunk });
                continue;
            }
            ChunkHome::Stored(blob, at) => (Some(blob), stored.blobs().get(blob), at),
            ChunkHome::Shared(at) => (None, shared, at),
        };
        let blob = blob.ok_or(WriteSharedError::NoChunk(at.0))?;
        let found = blob.chunks.get(at.0 as usize).ok_or(WriteSharedError::NoChunk(at.0))?;
        if content(found) != content(chunk) {
            return Err(WriteSharedError::NoChunk(at.0));
        }
        let slot = match slots.get(&key) {
            Some(slot) => *slot,
            None => {
                others.push(blob.clone());
                let limit = BlobIndex::LIMIT;
                let slot = u8::try_from(others.len()).ok().filter(|_| others.len() < limit);
                *slots.entry(key).or_insert(BlobIndex(slot.ok_or(WriteSharedError::TooManyBlobs { limit })?))
            }
        };
        moved.push(ChunkRef { blob: slot, chunk: at });
    }
    for node in tree.nodes_mut() {
        let Kind::Regular { chunks, .. } = &mut node.kind else { continue };
        for chunk in chunks {
            *chunk = *moved.get(chunk.chunk.0 as usize).ok_or(WriteSharedError::NoChunk(chunk.chunk.0))?;
        }
    }
    copier.finish(&own, tree, others, options)
}

/// Writes a blob of chunks that are stored in other streams. Returns it; it has no files.
///
/// # Errors
///
/// When something cannot be read or written.
pub fn write_shared<'a>(
    chunks: impl Iterator<Item = (&'a dyn SharedSource, ChunkIndex, &'a Chunk)>,
    like: &Blob,
    options: &WriteOptions,
    out: impl Write,
) -> Result<Blob, WriteSharedError> {
    let mut copier = Copier::new(out);
    for (source, index, chunk) in chunks {
        copier.add(source, index.0, chunk)?;
    }
    let layer = copier.finish(like, Tree::new(), Vec::new(), options)?;
    layer.blobs.into_iter().next().ok_or(WriteSharedError::NoBlob)
}
