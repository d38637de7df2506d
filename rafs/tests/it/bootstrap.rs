//! What is written into a bootstrap is read from it.

use std::collections::HashMap;

use rafs::blob::decode::decode;
use rafs::blob::meta::BlobMeta;
use rafs::blob::{BlobIndex, ChunkIndex};
use rafs::bootstrap::{self, Bootstrap, Nid, ReadError, WriteError, WriteOptions};
use rafs::compress::Compressor;
use rafs::layout::v6::FileType;
use rafs::tree::{DeviceNumber, Image, Kind, Layer, Node, NodeId, Tree};

use crate::support::{Builder, Format, metadata, paths, sample, written};

/// Offset of the extension superblock's chunk table offset and size.
const CHUNK_TABLE: usize = 1152 + 24;

/// Every path with its node, and the first path of that node, so that trees whose nodes have other numbers compare.
fn normal(tree: &Tree) -> Vec<(Vec<u8>, Vec<u8>, Node)> {
    let mut first: HashMap<NodeId, Vec<u8>> = HashMap::new();
    let describe = |(path, id): (Vec<u8>, NodeId)| {
        let mut node = tree.node(id).clone();
        if let Kind::Directory(entries) = &mut node.kind {
            entries.clear();
        }
        let first = first.entry(id).or_insert_with(|| path.clone()).clone();
        (path, first, node)
    };
    paths(tree).into_iter().map(describe).collect()
}

fn read(layer: &Layer) -> Bootstrap {
    Bootstrap::from_bytes(written(layer, &WriteOptions::default())).unwrap()
}

#[test]
fn an_image_is_read_as_it_was_written() {
    for chunk_size in [4096, 1 << 16, 1 << 24] {
        let (layer, _) = sample(Format { chunk_size, ..Format::default() }).finish();
        let read = read(&layer).to_image().unwrap();
        assert_eq!(normal(&read.tree), normal(&layer.tree));
        let mut blobs = layer.blobs.clone();
        // Bootstraps do not say the level.
        blobs[0].compressor = Compressor::Zstd { level: 0 };
        if let Some(meta) = &mut blobs[0].meta {
            meta.compressor = Compressor::Zstd { level: 0 };
        }
        assert_eq!(read.blobs, blobs);
    }
}

#[test]
fn the_same_image_gives_the_same_bytes() {
    let (layer, _) = sample(Format::default()).finish();
    let bytes = written(&layer, &WriteOptions::default());
    assert_eq!(bytes, written(&layer, &WriteOptions::default()));
    // Node numbers, which depend on how the tree was made, leave no trace.
    let image = Bootstrap::from_bytes(bytes.clone()).unwrap().to_image().unwrap();
    let mut again = Vec::new();
    bootstrap::write(&image, &WriteOptions::default(), &mut again).unwrap();
    assert!(bytes == again);
}

#[test]
fn a_layers_own_bootstrap_does_not_know_its_blobs_id() {
    let (layer, _) = sample(Format::default()).finish();
    let mut bytes = Vec::new();
    bootstrap::write_layer(&layer, &WriteOptions::default(), &mut bytes).unwrap();
    let bootstrap = Bootstrap::from_bytes(bytes).unwrap();
    assert_eq!(bootstrap.blobs()[0].id, None);
    assert_eq!(normal(&bootstrap.to_layer().unwrap().tree), normal(&layer.tree));
}

#[test]
fn every_name_is_found_and_no_other() {
    let (layer, _) = sample(Format::default()).finish();
    let bootstrap = read(&layer);
    let mut nids: HashMap<NodeId, Nid> = HashMap::new();
    for (path, node) in paths(&layer.tree) {
        let nid = bootstrap.lookup_path(&path).unwrap().expect("the path is in the image");
        assert_eq!(*nids.entry(node).or_insert(nid), nid, "names of one file lead to one inode");
        for absent in [&b"/absent"[..], b"/-", b"/zzzz", b"/file-0500x"] {
            let absent = [&path[..], absent].concat();
            assert_eq!(bootstrap.lookup_path(&absent).unwrap(), None, "{}", absent.escape_ascii());
        }
    }
    let many = bootstrap.lookup_path(b"many").unwrap().unwrap();
    assert_eq!(bootstrap.parent(many).unwrap(), bootstrap.root());
    assert_eq!(bootstrap.parent(bootstrap.root()).unwrap(), bootstrap.root());
}

#[test]
fn a_directory_is_read_on_from_any_entry() {
    let (layer, _) = sample(Format::default()).finish();
    let bootstrap = read(&layer);
    for directory in [bootstrap.root(), bootstrap.lookup_path(b"many").unwrap().unwrap()] {
        let all: Vec<_> = bootstrap.read_dir(directory, 0).unwrap().map(Result::unwrap).collect();
        assert!(all.is_sorted_by(|a, b| a.name < b.name));
        for (position, entry) in all.iter().enumerate() {
            let rest: Vec<_> =
                bootstrap.read_dir(directory, entry.next_offset).unwrap().map(Result::unwrap).collect();
            assert_eq!(rest, all[position + 1..]);
        }
    }
}

#[test]
fn inodes_have_what_stat_shows() {
    let (layer, _) = sample(Format::default()).finish();
    let bootstrap = read(&layer);
    let inode = |path: &[u8]| bootstrap.inode(bootstrap.lookup_path(path).unwrap().unwrap()).unwrap();
    let linked = inode(b"etc/linked");
    assert_eq!((linked.kind, linked.size, linked.nlink), (FileType::Regular, 5000, 2));
    assert_eq!((linked.uid, linked.gid, linked.permissions), (1000, 70_000, 0o644));
    assert_eq!(linked.mtime.nanoseconds, 123_456_789);
    assert_eq!(inode(b"before 1970").mtime.seconds, -5);
    assert_eq!(inode(b"setuid").permissions, 0o4755);
    let disk = inode(b"disk");
    assert_eq!(disk.rdev, DeviceNumber { major: 259, minor: 0x12345 });
    assert_eq!((disk.kind, disk.size), (FileType::BlockDevice, 0));
    // etc, many and the empty directory.
    assert_eq!(bootstrap.inode(bootstrap.root()).unwrap().nlink, 5);
}

#[test]
fn pieces_cover_a_range_exactly_and_decode_to_the_content() {
    for compressor in [Compressor::None, Compressor::Lz4, Compressor::Zstd { level: 3 }] {
        let builder = sample(Format { compressor, ..Format::default() });
        let contents = builder.contents.clone();
        let (layer, stream) = builder.finish();
        let bootstrap = read(&layer);
        let nid = bootstrap.lookup_path(b"large").unwrap().unwrap();
        let content = &contents[&layer.tree.lookup([&b"large"[..]]).unwrap()];
        for range in
            [0..300_000, 0..1, 4095..4097, 8192..8192, 299_999..u64::MAX, 5000..290_001, 400_000..500_000]
        {
            let mut found = Vec::new();
            for piece in bootstrap.chunks(nid, range.clone()).unwrap() {
                let piece = piece.unwrap();
                assert_eq!(piece.file_offset, range.start + found.len() as u64);
                let chunk = bootstrap.chunk(piece.blob, piece.chunk).unwrap();
                assert_eq!(chunk.uncompressed_offset, piece.uncompressed_offset);
                let start = chunk.compressed_offset as usize;
                let stored = &stream[start..start + chunk.compressed_size as usize];
                let decoded = decode(&bootstrap.blobs()[0], &chunk, stored).unwrap();
                found.extend_from_slice(piece.of(&decoded).unwrap());
            }
            let end = range.end.min(300_000) as usize;
            assert!(found == content.get(range.start as usize..end).unwrap_or_default(), "{range:?}");
        }
    }
}

#[test]
fn a_chunk_is_found_in_a_table_of_any_order() {
    let (layer, _) = sample(Format::default()).finish();
    let mut bytes = written(&layer, &WriteOptions::default());
    let field = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let (start, size) = (field(CHUNK_TABLE), field(CHUNK_TABLE + 8));
    let reversed: Vec<u8> = bytes[start..start + size].chunks(80).rev().flatten().copied().collect();
    bytes[start..start + size].copy_from_slice(&reversed);
    let bootstrap = Bootstrap::from_bytes(bytes).unwrap();
    for (index, chunk) in layer.blobs[0].chunks.iter().enumerate() {
        assert_eq!(bootstrap.chunk(BlobIndex(0), ChunkIndex(index as u32)).unwrap(), *chunk);
    }
    let beyond = ChunkIndex(layer.blobs[0].chunks.len() as u32);
    assert!(matches!(bootstrap.chunk(BlobIndex(0), beyond), Err(ReadError::NoSuchChunk { .. })));
    assert!(matches!(bootstrap.chunk(BlobIndex(1), ChunkIndex(0)), Err(ReadError::NoSuchBlob(1))));
}

#[test]
fn chunk_information_stands_in_for_a_missing_chunk_table() {
    let (layer, stream) = sample(Format::default()).finish();
    let mut bytes = written(&layer, &WriteOptions::default());
    bytes[CHUNK_TABLE..CHUNK_TABLE + 16].fill(0);
    let mut bootstrap = Bootstrap::from_bytes(bytes).unwrap();
    assert!(!bootstrap.has_chunk_table());
    assert!(bootstrap.chunk(BlobIndex(0), ChunkIndex(0)).is_err());
    let range = BlobMeta::stored_range(&layer.blobs[0]).unwrap();
    let meta = BlobMeta::from_stored(&layer.blobs[0], &stream[range.start as usize..range.end as usize]);
    let mut meta = meta.unwrap();
    let digests = layer.blobs[0].chunks.iter().flat_map(|chunk| chunk.digest.0).collect();
    meta.set_digests(digests).unwrap();
    bootstrap.set_chunk_info(BlobIndex(0), meta).unwrap();
    for (index, chunk) in layer.blobs[0].chunks.iter().enumerate() {
        assert_eq!(bootstrap.chunk(BlobIndex(0), ChunkIndex(index as u32)).unwrap(), *chunk);
    }
    assert_eq!(bootstrap.to_image().unwrap().blobs[0].chunks, layer.blobs[0].chunks);
}

#[test]
fn files_to_prefetch_are_listed() {
    let (layer, _) = sample(Format::default()).finish();
    let names: [&[u8]; 4] = [b"/etc", b"large", b"/does/not/exist", b"/etc/"];
    let prefetch = names.map(Into::into).to_vec();
    let bytes = written(&layer, &WriteOptions { prefetch, ..WriteOptions::default() });
    let bootstrap = Bootstrap::from_bytes(bytes).unwrap();
    let expected = [&b"etc"[..], b"large"].map(|path| bootstrap.lookup_path(path).unwrap().unwrap());
    assert_eq!(bootstrap.prefetch().unwrap(), expected);
    assert!(rafs::check::structure(&bootstrap).is_clean());
}

#[test]
fn an_empty_image_has_no_blobs() {
    let (layer, _) = Builder::new(Format::default()).finish();
    let bootstrap = read(&layer);
    assert!(bootstrap.blobs().is_empty());
    assert_eq!(bootstrap.read_dir(bootstrap.root(), 0).unwrap().count(), 0);
}

fn refused(change: impl FnOnce(&mut Image)) -> WriteError {
    let mut builder = Builder::new(Format::default());
    builder.file(Tree::ROOT, b"file", b"content");
    let (layer, _) = builder.finish();
    let mut image = Image { tree: layer.tree, blobs: layer.blobs };
    change(&mut image);
    bootstrap::write(&image, &WriteOptions::default(), &mut Vec::new()).unwrap_err()
}

fn add(image: &mut Image, name: &[u8], kind: Kind) -> NodeId {
    let node = image.tree.add(Node { metadata: metadata(0o644), kind });
    image.tree.entries_mut(Tree::ROOT).unwrap().insert(name.into(), node);
    node
}

#[test]
fn what_the_format_cannot_hold_is_refused() {
    let many = refused(|image| {
        for index in 0..254_u32 {
            let mut blob = image.blobs[0].clone();
            blob.id = Some(rafs::digest::DigestAlgorithm::Sha256.digest(&index.to_le_bytes()));
            image.blobs.push(blob);
        }
    });
    assert!(matches!(many, WriteError::TooManyBlobs { count: 255, limit: 254 }), "{many}");
    let sizes = refused(|image| {
        let mut other = image.blobs[0].clone();
        other.chunk_size = 8192;
        image.blobs.push(other);
    });
    assert!(matches!(sizes, WriteError::ChunkSizes { blob: 1, found: 8192, expected: 4096 }), "{sizes}");
    let unknown = refused(|image| image.blobs[0].id = None);
    assert!(matches!(unknown, WriteError::UnknownBlobId(0)), "{unknown}");
    let count = refused(|image| {
        add(image, b"short", Kind::Regular { size: 1, chunks: Vec::new() });
    });
    assert!(matches!(count, WriteError::ChunkCount { size: 1, found: 0, expected: 1 }), "{count}");
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'n'; 256]] {
        let name = refused(|image| {
            add(image, name, Kind::Fifo);
        });
        assert!(matches!(name, WriteError::BadName(_)), "{name}");
    }
    let symlink = refused(|image| {
        add(image, b"s", Kind::Symlink(vec![b'x'; 4096].into()));
    });
    assert!(matches!(symlink, WriteError::LongSymlink(4096)), "{symlink}");
    let number = DeviceNumber { major: 4096, minor: 0 };
    let device = refused(|image| {
        add(image, b"d", Kind::CharDevice(number));
    });
    assert!(matches!(device, WriteError::DeviceNumber { major: 4096, minor: 0 }), "{device}");
    let linked = refused(|image| {
        let node = add(image, b"d1", Kind::Directory(Default::default()));
        image.tree.entries_mut(Tree::ROOT).unwrap().insert(b"d2"[..].into(), node);
    });
    assert!(matches!(linked, WriteError::LinkedDirectory), "{linked}");
    let xattr = refused(|image| {
        let node = add(image, b"x", Kind::Fifo);
        image.tree.node_mut(node).metadata.xattrs.insert(b"user.a"[..].into(), vec![0; 65_536].into());
    });
    assert!(matches!(xattr, WriteError::LargeXattr { size: 65_536, .. }), "{xattr}");
}
