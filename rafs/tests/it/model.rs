//! Any tree, written as an archive, built, merged, written and unpacked, is the same tree.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;

use proptest::prelude::*;
use rafs::blob::Blob;
use rafs::blob::source::BlobSource;
use rafs::bootstrap::{self, Bootstrap, WriteOptions};
use rafs::build::{BuildOptions, build_layer};
use rafs::compress::Compressor;
use rafs::digest::DigestAlgorithm;
use rafs::source::tar::TarSource;
use rafs::source::{EntryKind, Source};
use rafs::tree::Metadata;
use rafs::{check, merge, unpack};

use crate::arbitrary::{FileKind, FileTree, file_tree};
use crate::archive::{Dialect, Sparse, to_tar};

/// A blob in memory.
struct Memory(Vec<u8>);

impl BlobSource for Memory {
    fn size(&self, _: &Blob) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read(&self, _: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        let range = range.start as usize..range.end as usize;
        Ok(self.0.get(range).ok_or(io::ErrorKind::UnexpectedEof)?.to_vec())
    }
}

/// What a path is: metadata, type (content as bytes), and the least of the names of its file.
#[derive(Debug, Eq, PartialEq)]
struct Seen {
    metadata: Metadata,
    kind: SeenKind,
    least_name: Vec<u8>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum SeenKind {
    Regular(Vec<u8>),
    Other(EntryKind),
}

type Names = BTreeMap<Vec<u8>, Seen>;

fn expected(tree: &FileTree) -> Names {
    let least_name =
        |number| tree.names.iter().find(|(_, other)| **other == number).expect("it has a name").0.clone();
    let seen = |(path, &number): (&Vec<u8>, &usize)| {
        let file = tree.file(path);
        let kind = match &file.kind {
            FileKind::Regular(content) => SeenKind::Regular(content.bytes()),
            FileKind::Directory => SeenKind::Other(EntryKind::Directory),
            FileKind::Symlink(target) => SeenKind::Other(EntryKind::Symlink(target.as_slice().into())),
            FileKind::CharDevice(device) => SeenKind::Other(EntryKind::CharDevice(*device)),
            FileKind::BlockDevice(device) => SeenKind::Other(EntryKind::BlockDevice(*device)),
            FileKind::Fifo => SeenKind::Other(EntryKind::Fifo),
        };
        (path.clone(), Seen { metadata: file.metadata.clone(), kind, least_name: least_name(number) })
    };
    tree.names.iter().map(seen).collect()
}

/// Reads an archive back, with names as the model has them and hard links resolved.
fn read_back(archive: &[u8]) -> Names {
    let mut source = TarSource::new(archive);
    let mut names = Names::new();
    while let Some(entry) = source.next_entry().unwrap() {
        let path = normalised(&entry.path);
        let seen = match entry.kind {
            EntryKind::HardLink(target) => {
                let target = &names[&normalised(&target)];
                let (metadata, kind) = (target.metadata.clone(), target.kind.clone());
                Seen { metadata, kind, least_name: target.least_name.clone() }
            }
            EntryKind::Regular { size } => {
                let mut content = vec![0; size as usize];
                let mut filled = 0;
                while filled < content.len() {
                    filled += source.read(&mut content[filled..]).unwrap();
                }
                Seen { metadata: entry.metadata, kind: SeenKind::Regular(content), least_name: path.clone() }
            }
            kind => Seen { metadata: entry.metadata, kind: SeenKind::Other(kind), least_name: path.clone() },
        };
        names.insert(path, seen);
    }
    // An archive's order is that of a walk: its first name of a file need not be the least, which the model takes.
    let mut least = BTreeMap::new();
    for (path, seen) in &names {
        least.entry(seen.least_name.clone()).or_insert_with(|| path.clone());
    }
    for seen in names.values_mut() {
        seen.least_name = least[&seen.least_name].clone();
    }
    names
}

fn normalised(path: &[u8]) -> Vec<u8> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    if path == b"." { Vec::new() } else { path.strip_prefix(b"./").unwrap_or(path).to_vec() }
}

#[derive(Clone, Copy, Debug)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

fn compressed(archive: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => archive.to_vec(),
        Compression::Zstd => zstd::encode_all(archive, 1).unwrap(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(archive).unwrap();
            encoder.finish().unwrap()
        }
    }
}

fn options() -> impl Strategy<Value = BuildOptions> {
    let compressor =
        prop_oneof![Just(Compressor::Zstd { level: 1 }), Just(Compressor::Lz4), Just(Compressor::None)];
    let digester = prop_oneof![Just(DigestAlgorithm::Blake3), Just(DigestAlgorithm::Sha256)];
    let chunk_size = prop_oneof![Just(4 << 10), Just(64 << 10), Just(1 << 20)];
    let batch_size = prop_oneof![Just(None), Just(Some(4 << 10))];
    (compressor, digester, chunk_size, batch_size, 1..4_usize).prop_map(
        |(compressor, digester, chunk_size, batch_size, threads)| BuildOptions {
            compressor,
            digester,
            chunk_size,
            // Batches are compressed, or none.
            batch_size: batch_size.filter(|_| compressor != Compressor::None),
            threads,
            ..BuildOptions::default()
        },
    )
}

fn dialect() -> impl Strategy<Value = Dialect> {
    let sparse = prop_oneof![Just(Sparse::Dense), Just(Sparse::V0_0), Just(Sparse::V0_1), Just(Sparse::V1_0)];
    prop_oneof![4 => sparse.prop_map(Dialect::Pax), 1 => Just(Dialect::Gnu)]
}

fn compression() -> impl Strategy<Value = Compression> {
    prop_oneof![Just(Compression::None), Just(Compression::Gzip), Just(Compression::Zstd)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_survives_archive_build_merge_and_unpack(
        tree in file_tree(),
        dialect in dialect(),
        reversed in any::<bool>(),
        compression in compression(),
        options in options(),
    ) {
        let archive = to_tar(&tree, dialect, reversed);
        let mut blob = Vec::new();
        let layer = build_layer(compressed(&archive, compression).as_slice(), &mut blob, &options).unwrap();
        let image = merge::merge(vec![layer]).unwrap();
        let mut bytes = Vec::new();
        bootstrap::write(&image, &WriteOptions { chunk_size: options.chunk_size, ..WriteOptions::default() }, &mut bytes)
            .unwrap();

        let mut bootstrap = Bootstrap::from_bytes(bytes).unwrap();
        let blobs = Memory(blob);
        let mut report = check::structure(&bootstrap);
        report.merge(check::blobs(&mut bootstrap, &blobs, check::Options::default()));
        prop_assert!(report.is_clean(), "{:?}", report);

        let mut unpacked = Vec::new();
        unpack::to_tar(&bootstrap, &blobs, &mut unpacked).unwrap();
        let (found, expected) = (read_back(&unpacked), expected(&tree));
        prop_assert!(found.keys().eq(expected.keys()), "{:?} instead of {:?}", found.keys(), expected.keys());
        for (path, seen) in &found {
            prop_assert_eq!(seen, &expected[path], "{:?}", String::from_utf8_lossy(path));
        }
    }
}
