//! What is written into a bootstrap is read from it.

mod support;

use rafs::blob::decode::decode;
use rafs::blob::{BlobIndex, ChunkIndex};
use rafs::bootstrap::{self, Bootstrap, Nid, ReadError, WriteOptions};
use rafs::compress::Compressor;
use rafs::digest::DigestAlgorithm;
use rafs::layout::v6::FileType;
use rafs::tree::{Image, Kind, Layer, NodeId, Tree};
use support::{Format, sample};

/// Nodes in the order in which a walk meets them, so that trees with other node numbers compare equal.
fn normal(tree: &Tree) -> Vec<(Vec<u8>, NodeId, rafs::tree::Node)> {
    let mut met = std::collections::HashMap::new();
    let mut nodes = Vec::new();
    let mut pending = vec![(Vec::new(), Tree::ROOT)];
    while let Some((path, id)) = pending.pop() {
        let next = met.len();
        let first = *met.entry(id).or_insert(next);
        let mut node = tree.node(id).clone();
        if let Kind::Directory(entries) = &mut node.kind {
            for (name, child) in std::mem::take(entries) {
                pending.push(([&path[..], b"/", &name].concat(), child));
            }
        }
        nodes.push((path, first, node));
    }
    nodes.into_iter().map(|(path, first, node)| (path, node_id(first), node)).collect()
}

fn node_id(number: usize) -> NodeId {
    // The only way to a `NodeId` is a tree.
    let mut tree = Tree::new();
    let mut id = Tree::ROOT;
    for _ in 0..number {
        id = tree.add(tree.node(Tree::ROOT).clone());
    }
    id
}

fn written(layer: &Layer) -> Vec<u8> {
    let image = Image { tree: layer.tree.clone(), blobs: layer.blobs.clone() };
    let mut bytes = Vec::new();
    bootstrap::write(&image, &WriteOptions::default(), &mut bytes).unwrap();
    bytes
}

#[test]
fn an_image_is_read_as_it_was_written() {
    for chunk_size in [4096, 1 << 16, 1 << 24] {
        let (layer, _) = sample(Format { chunk_size, ..Format::default() }).finish();
        let read = Bootstrap::from_bytes(written(&layer)).unwrap().to_image().unwrap();
        assert_eq!(normal(&read.tree), normal(&layer.tree));
        let mut blobs = layer.blobs.clone();
        blobs[0].compressor = Compressor::Zstd { level: 0 };
        if let Some(meta) = &mut blobs[0].meta {
            meta.compressor = Compressor::Zstd { level: 0 };
        }
        assert_eq!(read.blobs, blobs);
    }
}
