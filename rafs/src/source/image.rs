//! The files of an image, to be built again: those that are fetched first in front, all others in the order of their paths.
//!
//! A merged image has nothing that was deleted or overwritten, so what is built of it has not either.

use std::collections::HashMap;

use super::{Entry, EntryKind, Source, SourceError};
use crate::blob::source::{BlobError, BlobSource, ChunkContents};
use crate::tree::{ChunkRef, Image, Kind, Name, NodeId, Tree};

/// The files of an image. Nothing but the tree and one chunk is in memory.
pub struct ImageSource<'a, S> {
    image: &'a Image,
    blobs: &'a S,
    /// The files that come first, the last first: each with its path.
    first: Vec<(Vec<u8>, NodeId)>,
    /// Directories under way: where each one's path ends, and the entries that are still to come, the last first.
    open: Vec<(usize, Vec<(&'a Name, NodeId)>)>,
    path: Vec<u8>,
    /// Names of each node, and whether it was met.
    nodes: Vec<NodeNames>,
    /// The path under which a node of several names was met, or one that came first.
    met_at: HashMap<NodeId, Vec<u8>>,
    content: ChunkedContent<'a>,
}

#[derive(Clone, Copy, Default)]
struct NodeNames {
    names: u32,
    met: bool,
}

/// What is left of the current file.
#[derive(Default)]
struct ChunkedContent<'a> {
    chunks: &'a [ChunkRef],
    piece: Vec<u8>,
    /// Bytes of `piece` that were read.
    done: usize,
    reader: ChunkContents,
}

impl<'a, S: BlobSource> ImageSource<'a, S> {
    /// The files of `image`, whose chunks are in `blobs`. The regular files at the paths `first` come first, in that order; a
    /// directory there stands for all in it.
    pub fn new(image: &'a Image, blobs: &'a S, first: &[Box<[u8]>]) -> Self {
        let tree = &image.tree;
        let mut source = Self {
            image,
            blobs,
            first: Vec::new(),
            open: Vec::new(),
            path: Vec::new(),
            nodes: names(tree),
            met_at: HashMap::new(),
            content: ChunkedContent::default(),
        };
        for path in first {
            source.put_first(path);
        }
        source.first.reverse();
        source
    }

    /// Puts the regular files at `path` behind those that come first so far.
    fn put_first(&mut self, path: &[u8]) {
        let tree = &self.image.tree;
        let names: Vec<&[u8]> = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()).collect();
        let Some(found) = tree.lookup(names.iter().copied()) else { return };
        let mut todo = vec![(names.join(&b'/'), found)];
        while let Some((path, id)) = todo.pop() {
            match &tree.node(id).kind {
                Kind::Directory(entries) => {
                    let within = |name: &Name| {
                        if path.is_empty() { name.to_vec() } else { [&path[..], b"/", name].concat() }
                    };
                    todo.extend(entries.iter().rev().map(|(name, id)| (within(name), *id)));
                }
                Kind::Regular { .. } => {
                    let met = &mut self.nodes[id.0 as usize];
                    if !std::mem::replace(&mut met.met, true) {
                        self.met_at.insert(id, path.clone());
                        self.first.push((path, id));
                    }
                }
                _ => {}
            }
        }
    }

    fn entry(&mut self, path: Vec<u8>, id: NodeId) -> Entry {
        let node = self.image.tree.node(id);
        let kind = match &node.kind {
            Kind::Directory(_) => EntryKind::Directory,
            Kind::Regular { size, chunks } => {
                self.content.begin(chunks);
                EntryKind::Regular { size: *size }
            }
            Kind::Symlink(target) => EntryKind::Symlink(target.clone()),
            Kind::CharDevice(number) => EntryKind::CharDevice(*number),
            Kind::BlockDevice(number) => EntryKind::BlockDevice(*number),
            Kind::Fifo => EntryKind::Fifo,
            Kind::Socket => EntryKind::Socket,
        };
        Entry { path, metadata: node.metadata.clone(), kind }
    }

    /// The next entry in the order of paths; `None` for one that came first.
    fn step(&mut self, id: NodeId) -> Option<Entry> {
        let tree = &self.image.tree;
        if tree.entries(id).is_some() {
            self.open.push((self.path.len(), entries(tree, id)));
            return Some(self.entry(self.path.clone(), id));
        }
        let met = &mut self.nodes[id.0 as usize];
        let several = met.names > 1;
        if std::mem::replace(&mut met.met, true) {
            let at = self.met_at.get(&id).filter(|at| **at != self.path)?.clone();
            let metadata = tree.node(id).metadata.clone();
            return Some(Entry { path: self.path.clone(), metadata, kind: EntryKind::HardLink(at) });
        }
        if several {
            self.met_at.insert(id, self.path.clone());
        }
        Some(self.entry(self.path.clone(), id))
    }
}

impl<S: BlobSource> Source for ImageSource<'_, S> {
    fn next_entry(&mut self) -> Result<Option<Entry>, SourceError> {
        self.content.begin(&[]);
        if let Some((path, id)) = self.first.pop() {
            return Ok(Some(self.entry(path, id)));
        }
        if self.open.is_empty() && self.path.is_empty() {
            // The root: from here on the path is never empty but at the end.
            self.path.push(b'.');
            let root = self.entry(b".".to_vec(), Tree::ROOT);
            self.open.push((0, entries(&self.image.tree, Tree::ROOT)));
            return Ok(Some(root));
        }
        while let Some((end, rest)) = self.open.last_mut() {
            let end = *end;
            let Some((name, id)) = rest.pop() else {
                self.open.pop();
                continue;
            };
            self.path.truncate(end);
            if end > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name);
            if let Some(entry) = self.step(id) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    fn read(&mut self, buf: &mut [u8]) -> Result<usize, SourceError> {
        if buf.is_empty() {
            return Ok(0);
        }
        let read = self.content.read(self.image, self.blobs, buf);
        read.map_err(|error| SourceError::Image(Box::new(error)))
    }
}

impl<'a> ChunkedContent<'a> {
    fn begin(&mut self, chunks: &'a [ChunkRef]) {
        self.chunks = chunks;
        self.piece.clear();
        self.done = 0;
    }

    fn read(&mut self, image: &Image, blobs: &impl BlobSource, buf: &mut [u8]) -> Result<usize, BlobError> {
        if self.done == self.piece.len() {
            let Some((next, rest)) = self.chunks.split_first() else { return Ok(0) };
            self.piece = self.reader.read(image, blobs, *next)?;
            self.chunks = rest;
            self.done = 0;
        }
        let length = buf.len().min(self.piece.len() - self.done);
        buf[..length].copy_from_slice(&self.piece[self.done..][..length]);
        self.done += length;
        Ok(length)
    }
}

/// How many names each node of the tree has.
fn names(tree: &Tree) -> Vec<NodeNames> {
    let mut nodes = vec![NodeNames::default(); tree.node_count()];
    let mut todo = vec![Tree::ROOT];
    while let Some(directory) = todo.pop() {
        for &id in tree.entries(directory).into_iter().flat_map(|entries| entries.values()) {
            nodes[id.0 as usize].names += 1;
            if tree.entries(id).is_some() {
                todo.push(id);
            }
        }
    }
    nodes
}

/// A directory's entries, the last first.
fn entries(tree: &Tree, id: NodeId) -> Vec<(&Name, NodeId)> {
    tree.entries(id).into_iter().flatten().rev().map(|(name, id)| (name, *id)).collect()
}
