//! A small layer with one of everything, built without the crate's own builder.

#![allow(dead_code, reason = "not every test uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;

use rafs::blob::source::BlobSource;
use rafs::blob::stream::BlobWriter;
use rafs::blob::{Blob, BlobIndex, Chunk, ChunkIndex};
use rafs::bootstrap::{self, WriteOptions};
use rafs::compress::Compressor;
use rafs::digest::DigestAlgorithm;
use rafs::tree::{ChunkRef, DeviceNumber, Image, Kind, Layer, Metadata, Node, NodeId, Time, Tree};
use test_support::text;

/// How chunks are made.
#[derive(Clone, Copy)]
pub(crate) struct Format {
    pub(crate) compressor: Compressor,
    pub(crate) digester: DigestAlgorithm,
    pub(crate) chunk_size: u32,
}

impl Default for Format {
    fn default() -> Self {
        Self {
            compressor: Compressor::Zstd { level: 3 },
            digester: DigestAlgorithm::Blake3,
            chunk_size: 4096,
        }
    }
}

/// Builds a layer file by file.
pub(crate) struct Builder {
    pub(crate) tree: Tree,
    pub(crate) blob: Blob,
    out: BlobWriter<Vec<u8>>,
    format: Format,
    /// What regular files contain, by node.
    pub(crate) contents: BTreeMap<NodeId, Vec<u8>>,
}

pub(crate) fn metadata(permissions: u16) -> Metadata {
    Metadata {
        permissions,
        uid: 1000,
        gid: 70_000,
        mtime: Time { seconds: 1_700_000_000, nanoseconds: 123_456_789 },
        ..Metadata::default()
    }
}

impl Builder {
    pub(crate) fn new(format: Format) -> Self {
        let blob = Blob::coding(format.chunk_size, format.compressor, format.digester);
        Self { tree: Tree::new(), blob, out: BlobWriter::new(Vec::new()), format, contents: BTreeMap::new() }
    }

    pub(crate) fn link(&mut self, parent: NodeId, name: &[u8], node: NodeId) {
        self.tree.entries_mut(parent).unwrap().insert(name.into(), node);
    }

    pub(crate) fn add(&mut self, parent: NodeId, name: &[u8], metadata: Metadata, kind: Kind) -> NodeId {
        let node = self.tree.add(Node { metadata, kind });
        self.link(parent, name, node);
        node
    }

    pub(crate) fn directory(&mut self, parent: NodeId, name: &[u8]) -> NodeId {
        self.add(parent, name, metadata(0o755), Kind::Directory(BTreeMap::new()))
    }

    pub(crate) fn file(&mut self, parent: NodeId, name: &[u8], content: &[u8]) -> NodeId {
        let chunks = content.chunks(self.format.chunk_size as usize).map(|data| self.chunk(data)).collect();
        let kind = Kind::Regular { size: content.len() as u64, chunks };
        let node = self.add(parent, name, metadata(0o644), kind);
        self.contents.insert(node, content.to_vec());
        node
    }

    fn chunk(&mut self, data: &[u8]) -> ChunkRef {
        let digest = self.format.digester.digest(data);
        let found = self.blob.chunks.iter().position(|chunk| chunk.digest == digest);
        let chunk = found.unwrap_or_else(|| {
            let packed = match self.format.compressor {
                Compressor::None => data.to_vec(),
                Compressor::Lz4 => lz4::block::compress(data, None, false).unwrap(),
                Compressor::Zstd { level } => zstd::bulk::compress(data, level).unwrap(),
            };
            let compressed = packed.len() < data.len();
            let stored = if compressed { packed } else { data.to_vec() };
            self.blob.chunks.push(Chunk {
                digest,
                compressed_offset: self.out.position(),
                compressed_size: stored.len() as u32,
                uncompressed_offset: self.blob.uncompressed_size,
                uncompressed_size: data.len() as u32,
                compressed,
                batch: None,
            });
            self.blob.uncompressed_size += (data.len() as u64).next_multiple_of(4096);
            self.out.write_all(&stored).unwrap();
            self.blob.chunks.len() - 1
        });
        ChunkRef { blob: BlobIndex(0), chunk: ChunkIndex(chunk as u32) }
    }

    /// The layer and its blob stream.
    pub(crate) fn finish(self) -> (Layer, Vec<u8>) {
        let mut layer = Layer { tree: self.tree, blobs: vec![self.blob] };
        let stream = self.out.finish(&mut layer, &WriteOptions::default()).unwrap();
        (layer, stream)
    }
}

/// A tree with one of everything.
pub(crate) fn sample(format: Format) -> Builder {
    let mut b = Builder::new(format);
    let root = Tree::ROOT;
    let etc = b.directory(root, b"etc");
    b.file(etc, b"passwd", b"root:x:0:0:root:/root:/bin/sh\n");
    let linked = b.file(etc, b"linked", &text(1, 5000));
    b.link(root, b"hard link", linked);
    b.file(etc, b"empty", b"");
    b.file(root, b"large", &text(2, 300_000));
    b.file(root, b"copy of linked", &text(1, 5000));
    b.file(root, b"-sorts before dot", b"x");
    b.file(root, b"not utf-8 \xff\xfe", b"y");
    b.file(root, &[b'n'; 255], b"long name");
    b.add(root, b"symlink", metadata(0o777), Kind::Symlink(b"etc/passwd"[..].into()));
    b.add(root, b"long symlink", metadata(0o777), Kind::Symlink(vec![b'z'; 4095].into()));
    b.add(root, b"null", metadata(0o666), Kind::CharDevice(DeviceNumber { major: 1, minor: 3 }));
    b.add(root, b"disk", metadata(0o660), Kind::BlockDevice(DeviceNumber { major: 259, minor: 0x12345 }));
    b.add(root, b"pipe", metadata(0o600), Kind::Fifo);
    b.add(root, b"socket", metadata(0o600), Kind::Socket);
    b.directory(root, b"empty directory");
    let many = b.directory(root, b"many");
    for index in 0..1000 {
        b.file(many, format!("file-{index:04}").as_bytes(), format!("content {}", index % 7).as_bytes());
    }
    let setuid = b.file(root, b"setuid", b"#!/bin/true");
    b.tree.node_mut(setuid).metadata.permissions = 0o4755;
    let xattrs = &mut b.tree.node_mut(setuid).metadata.xattrs;
    xattrs.insert(b"user.comment"[..].into(), b"hello"[..].into());
    xattrs.insert(b"user.empty"[..].into(), b""[..].into());
    xattrs.insert(
        b"security.capability"[..].into(),
        vec![1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].into(),
    );
    xattrs.insert(b"trusted.big"[..].into(), vec![7; 3000].into());
    let old = b.file(root, b"before 1970", b"old");
    b.tree.node_mut(old).metadata.mtime = Time { seconds: -5, nanoseconds: 1 };
    b
}

/// Every blob is this one.
pub(crate) struct OneBlob(pub(crate) Vec<u8>);

impl BlobSource for OneBlob {
    fn size(&self, _: &Blob) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read(&self, _: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        let found = self.0.get(range.start as usize..range.end as usize);
        found.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// The bootstrap of an image of this layer alone.
pub(crate) fn written(layer: &Layer, options: &WriteOptions) -> Vec<u8> {
    let image = Image { tree: layer.tree.clone(), blobs: layer.blobs.clone() };
    let mut bytes = Vec::new();
    bootstrap::write(&image, options, &mut bytes).unwrap();
    bytes
}

/// A path and its node, of every name of a tree.
pub(crate) fn paths(tree: &Tree) -> BTreeMap<Vec<u8>, NodeId> {
    let mut paths = BTreeMap::new();
    let mut pending = vec![(Vec::new(), Tree::ROOT)];
    while let Some((path, id)) = pending.pop() {
        for (name, child) in tree.entries(id).into_iter().flatten() {
            pending.push(([&path[..], b"/", name].concat(), *child));
        }
        paths.insert(path, id);
    }
    paths
}
