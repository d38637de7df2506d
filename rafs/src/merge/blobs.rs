//! Which blobs an image uses, and where in them its chunks are.

use std::collections::HashMap;

use super::MergeError;
use super::overlay::Stacked;
use crate::blob::{Blob, BlobIndex, ChunkIndex, Contradiction, complete};
use crate::digest::DigestAlgorithm;
use crate::share::Content;
use crate::tree::{ChunkRef, Image, Kind, NodeId, Tree};

/// The blobs of all layers. Two blobs of one id are one blob.
pub(super) struct Pool {
    blobs: Vec<Blob>,
    /// For each layer, for each of its blobs, the blob's place in `blobs`; `None` for one without chunks.
    places: Vec<Vec<Option<usize>>>,
    /// Where each content is first.
    contents: HashMap<Content, PooledChunk>,
}

/// A chunk of a blob of the pool.
#[derive(Clone, Copy)]
struct PooledChunk {
    blob: usize,
    chunk: u32,
}

impl Pool {
    /// The pool of the blobs of all layers.
    pub(super) fn new(layers: Vec<Vec<Blob>>) -> Result<Self, MergeError> {
        let mut pool = Self { blobs: Vec::new(), places: Vec::new(), contents: HashMap::new() };
        let mut by_id = HashMap::new();
        let mut properties = None;
        for (layer, blobs) in layers.into_iter().enumerate() {
            let mut places = Vec::with_capacity(blobs.len());
            for (number, blob) in blobs.into_iter().enumerate() {
                if blob.chunks.is_empty() {
                    places.push(None);
                    continue;
                }
                check_properties(layer, &blob, &mut properties)?;
                let id = blob.id.ok_or(MergeError::NoId { layer, blob: number })?;
                let place = *by_id.entry(id).or_insert(pool.blobs.len());
                pool.add(place, blob).map_err(|difference| MergeError::Contradiction {
                    layer,
                    blob: id,
                    difference,
                })?;
                places.push(Some(place));
            }
            pool.places.push(places);
        }
        Ok(pool)
    }

    /// Adds a blob, or what is known of one that another layer has too.
    fn add(&mut self, place: usize, blob: Blob) -> Result<(), Contradiction> {
        let new: Vec<u32> = match self.blobs.get_mut(place) {
            Some(known) => complete(known, blob)?,
            None => {
                let known = blob.chunks.iter().zip(0..).filter(|(chunk, _)| !chunk.is_unknown());
                let known = known.map(|(_, index)| index).collect();
                self.blobs.push(blob);
                known
            }
        };
        self.contents.reserve(new.len());
        let chunks = &self.blobs[place].chunks;
        for index in new {
            let chunk = &chunks[index as usize];
            let found = PooledChunk { blob: place, chunk: index };
            self.contents.entry((chunk.digest, chunk.uncompressed_size)).or_insert(found);
        }
        Ok(())
    }

    /// Makes an image of a stack: chunk references to the blobs that it uses.
    pub(super) fn assign(self, stacked: Stacked) -> Result<Image, MergeError> {
        let Stacked { mut tree, origin } = stacked;
        let mut slots = vec![None; self.blobs.len()];
        let mut used = Vec::new();
        for id in files_in_order(&tree) {
            let layer = origin[id.0 as usize] as usize;
            let Kind::Regular { chunks, .. } = &mut tree.node_mut(id).kind else { continue };
            for chunk in chunks {
                let place = self.find(layer, *chunk)?;
                let index = match slots[place.blob] {
                    Some(index) => index,
                    None => {
                        let index = next_index(used.len())?;
                        used.push(place.blob);
                        *slots[place.blob].insert(index)
                    }
                };
                *chunk = ChunkRef { blob: index, chunk: ChunkIndex(place.chunk) };
            }
        }
        let mut blobs: Vec<_> = self.blobs.into_iter().map(Some).collect();
        let blobs = used.into_iter().filter_map(|place| blobs[place].take()).collect();
        Ok(Image { tree, blobs })
    }

    /// Where the content of a layer's chunk is first.
    fn find(&self, layer: usize, wanted: ChunkRef) -> Result<PooledChunk, MergeError> {
        let blob = usize::from(wanted.blob.0);
        let chunk = wanted.chunk.0;
        let missing = MergeError::NoChunk { layer, blob, chunk };
        let place = self.places[layer].get(blob).copied().flatten().ok_or(missing.clone())?;
        let found = self.blobs[place].chunks.get(chunk as usize);
        let found = found.filter(|chunk| !chunk.is_unknown()).ok_or(missing)?;
        let content = (found.digest, found.uncompressed_size);
        Ok(self.contents.get(&content).copied().unwrap_or(PooledChunk { blob: place, chunk }))
    }
}

fn check_properties(
    layer: usize,
    blob: &Blob,
    properties: &mut Option<(u32, DigestAlgorithm)>,
) -> Result<(), MergeError> {
    let (expected_size, expected_digester) = *properties.get_or_insert((blob.chunk_size, blob.digester));
    if blob.chunk_size != expected_size {
        return Err(MergeError::ChunkSize { layer, found: blob.chunk_size, expected: expected_size });
    }
    if blob.digester != expected_digester {
        return Err(MergeError::Digester { layer, found: blob.digester, expected: expected_digester });
    }
    Ok(())
}

fn next_index(used: usize) -> Result<BlobIndex, MergeError> {
    let limit = BlobIndex::LIMIT;
    let index = u8::try_from(used).ok().filter(|_| used < limit);
    index.map(BlobIndex).ok_or(MergeError::TooManyBlobs { limit })
}

/// The regular files of a tree in order of their paths, each once.
fn files_in_order(tree: &Tree) -> Vec<NodeId> {
    let mut seen = vec![false; tree.node_count()];
    let mut files = Vec::new();
    let mut stack = vec![Tree::ROOT];
    while let Some(id) = stack.pop() {
        match &tree.node(id).kind {
            Kind::Directory(entries) => stack.extend(entries.values().rev()),
            Kind::Regular { .. } if !std::mem::replace(&mut seen[id.0 as usize], true) => files.push(id),
            _ => {}
        }
    }
    files
}
