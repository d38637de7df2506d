//! What a node that has read all of one image must fetch to read all of another.
//!
//! A node keeps chunks by blob: two images share what they have in blobs of the same id. Content that the first image has in
//! a blob that the second does not refer to is fetched again; how much that is, is told apart. What is fetched for a member
//! of a batch is the whole batch, once, and a node keeps all of it.

use std::collections::{BTreeMap, HashSet};

use crate::blob::meta::BlobMeta;
use crate::blob::{Blob, Chunk};
use crate::bootstrap::Bootstrap;
use crate::digest::Digest;
use crate::layout::{flags, toc};
use crate::tree::{ChunkRef, Image, Kind, Tree};

/// What is to be fetched.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Fetch {
    /// For each blob of the second image, in its order.
    pub blobs: Vec<BlobFetch>,
}

/// What is to be fetched of one blob.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct BlobFetch {
    /// The blob's id.
    pub id: Option<Digest>,
    /// Whether the first image uses it too.
    pub shared: bool,
    /// Chunks that the second image's files use and the node does not have.
    pub chunks: u64,
    /// Their content in bytes.
    pub content_bytes: u64,
    /// The bytes of the blob that hold them.
    pub stored_bytes: u64,
    /// Of `chunks`, those with content that the first image has nowhere.
    pub new_chunks: u64,
    /// The bytes of the blob that hold these.
    pub new_stored_bytes: u64,
}

impl Fetch {
    /// Bytes of all blobs that are fetched.
    pub fn stored_bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.stored_bytes).sum()
    }

    /// Bytes that would be fetched if the second image referred to the first one's blobs for all content that is there.
    pub fn new_stored_bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.new_stored_bytes).sum()
    }
}

/// What a node that has read all files of `a` fetches until it has read all files of `b`, without bootstraps. Blobs with
/// batches need their chunk information ([`load_chunk_info`](crate::blob::source::load_chunk_info)) before the images are
/// read.
pub fn fetch(a: &Image, b: &Image) -> Fetch {
    let used_of_a = used(a);
    // By where they are stored: members of a batch are stored in the same bytes.
    let cached: HashSet<_> = used_of_a
        .iter()
        .filter_map(|at| Some((blob(a, *at)?.id?, chunk(a, *at)?.compressed_offset)))
        .collect();
    let contents: HashSet<_> =
        used_of_a.iter().filter_map(|at| content(blob(a, *at)?, chunk(a, *at)?)).collect();
    let ids: HashSet<_> = a.blobs.iter().filter_map(|blob| blob.id).collect();

    let mut found: BTreeMap<u8, BlobFetch> = BTreeMap::new();
    let (mut extents, mut new_extents) = (HashSet::new(), HashSet::new());
    for at in used(b) {
        let (Some(of), Some(chunk)) = (blob(b, at), chunk(b, at)) else { continue };
        if of.id.is_some_and(|id| cached.contains(&(id, chunk.compressed_offset))) {
            continue;
        }
        let entry = found.entry(at.blob.0).or_default();
        entry.chunks += 1;
        entry.content_bytes += u64::from(chunk.uncompressed_size);
        let extent = (at.blob, chunk.compressed_offset);
        let size = u64::from(chunk.compressed_size);
        entry.stored_bytes += if extents.insert(extent) { size } else { 0 };
        if content(of, chunk).is_none_or(|content| !contents.contains(&content)) {
            entry.new_chunks += 1;
            entry.new_stored_bytes += if new_extents.insert(extent) { size } else { 0 };
        }
    }
    let blobs = b.blobs.iter().zip(0u8..).map(|(blob, index)| BlobFetch {
        id: blob.id,
        shared: blob.id.is_some_and(|id| ids.contains(&id)),
        ..found.remove(&index).unwrap_or_default()
    });
    Fetch { blobs: blobs.collect() }
}

/// The bytes of blobs that a daemon reads before it mounts an image, to complete what the bootstrap says of chunks: of blobs
/// with batches, or of all where there is no chunk table.
pub fn chunk_info_bytes(bootstrap: &Bootstrap) -> u64 {
    let all = !bootstrap.has_chunk_table();
    let needed = |blob: &&Blob| blob.meta.is_some() && (all || blob.features & flags::blob::BATCH != 0);
    let mut sum = 0;
    for (index, blob) in bootstrap.blobs().iter().enumerate().filter(|(_, blob)| needed(blob)) {
        let Ok(range) = BlobMeta::stored_range(blob) else { continue };
        sum += range.end - range.start;
        if blob.features & flags::blob::HAS_TOC != 0 {
            sum += toc::SIZE_LIMIT as u64;
        }
        if blob.features & flags::blob::INLINED_CHUNK_DIGEST != 0 {
            sum += u64::from(bootstrap.chunk_count(crate::blob::BlobIndex(index as u8))) * 32;
        }
    }
    sum
}

/// The chunks that an image's files use, each once, in a stable order.
fn used(image: &Image) -> Vec<ChunkRef> {
    let mut used = HashSet::new();
    let mut seen = vec![false; image.tree.node_count()];
    let mut stack = vec![Tree::ROOT];
    while let Some(id) = stack.pop() {
        if std::mem::replace(&mut seen[id.0 as usize], true) {
            continue;
        }
        match &image.tree.node(id).kind {
            Kind::Directory(entries) => stack.extend(entries.values()),
            Kind::Regular { chunks, .. } => used.extend(chunks.iter().copied()),
            _ => {}
        }
    }
    let mut used: Vec<_> = used.into_iter().collect();
    used.sort_unstable();
    used
}

fn blob(image: &Image, at: ChunkRef) -> Option<&Blob> {
    image.blobs.get(usize::from(at.blob.0))
}

fn chunk(image: &Image, at: ChunkRef) -> Option<&Chunk> {
    blob(image, at)?.chunks.get(at.chunk.0 as usize)
}

/// What tells contents apart.
fn content(blob: &Blob, chunk: &Chunk) -> Option<(crate::digest::DigestAlgorithm, Digest, u32)> {
    (chunk.uncompressed_size > 0).then_some((blob.digester, chunk.digest, chunk.uncompressed_size))
}
