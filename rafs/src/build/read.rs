//! The reader: entries become nodes, and contents pieces in units.

use std::collections::HashMap;

use crossbeam_channel::{Receiver, Sender};

use super::BuildError;
use super::dictionary::outside;
use super::options::BuildOptions;
use super::seen::PieceNumber;
use super::tree::TreeBuilder;
use super::unit::{UNIT_SIZE, Unit, offset};
use crate::digest::Digest;
use crate::source::{EntryKind, Source};
use crate::tree::{ChunkRef, Kind, NodeId, Tree};

/// A layer's files have at most this many bytes together. Holes cost an archive nothing, and time as other content: an
/// archive of a kilobyte could keep a build busy for years.
const CONTENT_LIMIT_BYTES: u64 = 1 << 40;

/// A layer's files have at most this many chunks, equal ones included: each takes about 20 bytes of memory.
const PIECES_LIMIT: PieceNumber = 1 << 26;

/// A file that has content, and what became of it.
struct File {
    node: NodeId,
    content: FileContent,
}

enum FileContent {
    /// These pieces.
    Pieces { first: PieceNumber, count: u32 },
    /// One chunk of the dictionary.
    InDictionary(ChunkRef),
}

/// Where units come from and go to.
pub(super) struct UnitQueue {
    /// Empty units.
    pub(super) free: Receiver<Unit>,
    /// Full units.
    pub(super) full: Sender<Unit>,
}

/// Reads a source.
pub(super) struct Reader<'a> {
    options: &'a BuildOptions,
    queue: UnitQueue,
    units: u64,
    pieces: PieceNumber,
    /// Bytes of content that may still come.
    content_left: u64,
    /// The unit that is being filled.
    unit: Option<Unit>,
    /// The batch that is being filled.
    batch: Option<Unit>,
    /// The pieces that are in batches: their content is compared here, as what a batch has must not depend on timing.
    batched: HashMap<Digest, PieceNumber>,
    builder: TreeBuilder,
    files: Vec<File>,
}

/// What the reader leaves: a tree whose files lack their chunks.
pub(super) struct ReadTree {
    tree: Tree,
    files: Vec<File>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(options: &'a BuildOptions, queue: UnitQueue) -> Self {
        Self {
            options,
            queue,
            units: 0,
            pieces: 0,
            content_left: CONTENT_LIMIT_BYTES,
            unit: None,
            batch: None,
            batched: HashMap::new(),
            builder: TreeBuilder::new(),
            files: Vec::new(),
        }
    }

    /// Size in bytes of the content of a unit.
    pub(super) fn unit_size(options: &BuildOptions) -> usize {
        UNIT_SIZE.max(options.chunk_size as usize)
    }

    /// Reads the source to its end.
    pub(super) fn read(mut self, source: &mut impl Source) -> Result<ReadTree, BuildError> {
        while let Some(mut entry) = source.next_entry()? {
            let EntryKind::Regular { size } = entry.kind else {
                self.builder.insert(entry)?;
                continue;
            };
            let path = if size == 0 { Vec::new() } else { entry.path.clone() };
            entry.kind = EntryKind::Regular { size };
            let node = self.builder.insert(entry)?;
            if size > 0 {
                self.read_content(source, node, size, &path)?;
            }
        }
        for unit in [self.unit.take(), self.batch.take()].into_iter().flatten() {
            self.send(unit)?;
        }
        Ok(ReadTree { tree: self.builder.finish()?, files: self.files })
    }

    fn read_content(
        &mut self,
        source: &mut impl Source,
        node: NodeId,
        size: u64,
        path: &[u8],
    ) -> Result<(), BuildError> {
        let left = self.content_left.checked_sub(size);
        let too_large = || BuildError::ContentTooLarge { path: path.into(), limit: CONTENT_LIMIT_BYTES };
        self.content_left = left.ok_or_else(too_large)?;
        if self.options.batch_size.is_some_and(|batch_size| size < u64::from(batch_size / 2)) {
            return self.read_batched(source, node, size, path);
        }
        let first = self.pieces;
        let mut done = 0;
        while done < size {
            let length = (size - done).min(u64::from(self.options.chunk_size)) as usize;
            let mut unit = self.unit_with_room(length)?;
            fill(source, &mut unit.free()[..length], path, size, done)?;
            unit.push(self.pieces, length, None);
            self.unit = Some(unit);
            self.count_piece()?;
            done += length as u64;
        }
        self.files.push(File { node, content: FileContent::Pieces { first, count: self.pieces - first } });
        Ok(())
    }

    /// Reads a file of one small chunk into a batch.
    fn read_batched(
        &mut self,
        source: &mut impl Source,
        node: NodeId,
        size: u64,
        path: &[u8],
    ) -> Result<(), BuildError> {
        let length = size as usize;
        let mut unit = self.batch_with_room(length)?;
        let content = &mut unit.free()[..length];
        fill(source, content, path, size, 0)?;
        let digest = self.options.digester.digest(content);
        let dictionary = self.options.dictionary.as_deref();
        let content = if let Some(found) = dictionary.and_then(|chunks| chunks.find(&digest, offset(length)))
        {
            FileContent::InDictionary(found)
        } else if let Some(&first) = self.batched.get(&digest) {
            FileContent::Pieces { first, count: 1 }
        } else {
            let first = self.pieces;
            self.count_piece()?;
            self.batched.insert(digest, first);
            unit.push(first, length, Some(digest));
            FileContent::Pieces { first, count: 1 }
        };
        self.batch = Some(unit);
        self.files.push(File { node, content });
        Ok(())
    }

    fn count_piece(&mut self) -> Result<(), BuildError> {
        if self.pieces == PIECES_LIMIT {
            return Err(BuildError::TooManyChunks { limit: PIECES_LIMIT });
        }
        self.pieces += 1;
        Ok(())
    }

    fn unit_with_room(&mut self, length: usize) -> Result<Unit, BuildError> {
        match self.unit.take() {
            Some(unit) if unit.room() >= length => Ok(unit),
            Some(unit) => {
                self.send(unit)?;
                self.fresh(false)
            }
            None => self.fresh(false),
        }
    }

    fn batch_with_room(&mut self, length: usize) -> Result<Unit, BuildError> {
        let batch_size = self.options.batch_size.unwrap_or(0) as usize;
        match self.batch.take() {
            // Upstream keeps batches smaller than the batch size.
            Some(unit) if unit.used + length < batch_size => Ok(unit),
            Some(unit) => {
                self.send(unit)?;
                self.fresh(true)
            }
            None => self.fresh(true),
        }
    }

    fn fresh(&mut self, batch: bool) -> Result<Unit, BuildError> {
        let mut unit = self.queue.free.recv().map_err(|_| BuildError::Stopped)?;
        unit.reset(Self::unit_size(self.options));
        unit.batch = batch;
        Ok(unit)
    }

    fn send(&mut self, mut unit: Unit) -> Result<(), BuildError> {
        if unit.pieces.is_empty() {
            return Ok(());
        }
        unit.number = self.units;
        self.units += 1;
        self.queue.full.send(unit).map_err(|_| BuildError::Stopped)
    }
}

impl ReadTree {
    /// The tree, with the chunks of its files. In chunk references, blob index 0 is the own blob, and others are those of
    /// the dictionary plus one.
    pub(super) fn with_chunks(mut self, places: &[Option<ChunkRef>]) -> Tree {
        for file in &self.files {
            let found = match file.content {
                FileContent::Pieces { first, count } => {
                    let pieces = &places[first as usize..][..count as usize];
                    pieces.iter().map(|place| place.expect("the writer has placed every piece")).collect()
                }
                FileContent::InDictionary(found) => vec![outside(found)],
            };
            if let Kind::Regular { chunks, .. } = &mut self.tree.node_mut(file.node).kind {
                *chunks = found;
            }
        }
        self.tree
    }
}

/// Fills `buffer` with content of the current file, of which `done` bytes were read.
fn fill(
    source: &mut impl Source,
    buffer: &mut [u8],
    path: &[u8],
    size: u64,
    done: u64,
) -> Result<(), BuildError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..])? {
            0 => {
                let found = done + filled as u64;
                return Err(BuildError::ShortContent { path: path.into(), expected: size, found });
            }
            length => filled += length,
        }
    }
    Ok(())
}
