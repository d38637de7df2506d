//! The bytes that builds give, pinned in every variant of the format, on any number of threads.
//!
//! A new version of a compressor may give other bytes: then the digests here change with it, knowingly.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use rafs::bootstrap::{self, WriteOptions};
use rafs::build::{BuildOptions, Dictionary, build_layer};
use rafs::compress::Compressor;
use rafs::digest::DigestAlgorithm;
use rafs::merge::merge;
use rafs::tree::Image;
use support::noise;

struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn add(mut self, path: &str, kind: tar::EntryType, content: &[u8], link: &str) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o750);
        header.set_uid(1000);
        header.set_gid(100);
        header.set_mtime(1_700_000_000);
        if kind.is_symlink() || kind.is_hard_link() {
            header.set_link_name(link).unwrap();
        }
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    fn file(self, path: &str, content: &[u8]) -> Self {
        self.add(path, tar::EntryType::Regular, content, "")
    }

    fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn lower() -> Vec<u8> {
    Archive::new()
        .add("etc/", tar::EntryType::Directory, b"", "")
        .file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        .file("large", &noise(1, 300_000))
        .file("copy", &noise(1, 300_000))
        .file("small-1", &noise(2, 700))
        .file("small-2", &noise(3, 5000))
        .file("removed", &noise(4, 9000))
        .add("symlink", tar::EntryType::Symlink, b"", "etc/passwd")
        .add("hard-link", tar::EntryType::Link, b"", "small-1")
        .add("fifo", tar::EntryType::Fifo, b"", "")
        .finish()
}

fn upper() -> Vec<u8> {
    Archive::new()
        .file(".wh.removed", b"")
        .file("new", &noise(5, 20_000))
        .file("etc/copy", &noise(3, 5000))
        .finish()
}

/// Digests of both layers' blobs and of the bootstrap that merges them.
fn build(options: &BuildOptions) -> [String; 3] {
    let mut blobs = [Vec::new(), Vec::new()];
    let layers = [lower(), upper()].into_iter().zip(&mut blobs);
    let layers = layers.map(|(tar, blob)| build_layer(&tar[..], blob, options).unwrap()).collect();
    let image = merge(layers).unwrap();
    let write = WriteOptions {
        prefetch: vec![b"/etc"[..].into(), b"/large"[..].into()],
        chunk_size: options.chunk_size,
        ..WriteOptions::default()
    };
    let mut bytes = Vec::new();
    bootstrap::write(&image, &write, &mut bytes).unwrap();
    let digest = |bytes: &[u8]| DigestAlgorithm::Sha256.digest(bytes).to_string()[..16].to_owned();
    [digest(&blobs[0]), digest(&blobs[1]), digest(&bytes)]
}

fn expect(expected: [&str; 3], options: BuildOptions) {
    for threads in [1, 2, 5] {
        assert_eq!(build(&BuildOptions { threads, ..options.clone() }), expected, "{threads} threads");
    }
}

const SMALL_CHUNKS: u32 = 64 << 10;

#[test]
fn zstd_with_blake3() {
    expect(["3897bf0c4b10d882", "e67507eefa601e56", "29a92c9536dd4129"], BuildOptions::default());
}

#[test]
fn another_level_of_zstd_with_sha256() {
    let (compressor, digester) = (Compressor::Zstd { level: 9 }, DigestAlgorithm::Sha256);
    expect(
        ["bf1f218d98f5e134", "cfd657a9d1d279f2", "bccb99e26dcdec3f"],
        BuildOptions { compressor, digester, ..BuildOptions::default() },
    );
}

#[test]
fn lz4_in_small_chunks() {
    let (compressor, chunk_size) = (Compressor::Lz4, SMALL_CHUNKS);
    expect(
        ["95931218a2953cfd", "d5df4914a6f4dc0a", "e7ab9da4cba562a6"],
        BuildOptions { compressor, chunk_size, ..BuildOptions::default() },
    );
}

#[test]
fn no_compressor_in_the_smallest_chunks() {
    let (compressor, chunk_size) = (Compressor::None, 4 << 10);
    expect(
        ["51778d869c40273b", "392862fe609ed32c", "b4c566570a58df38"],
        BuildOptions { compressor, chunk_size, ..BuildOptions::default() },
    );
}

#[test]
fn the_largest_chunks() {
    expect(
        ["77293af36f81b53e", "2bea7209924b1cd1", "d05e02b3949d05cc"],
        BuildOptions { chunk_size: 16 << 20, ..BuildOptions::default() },
    );
}

#[test]
fn batches() {
    for (compressor, expected) in [
        (Compressor::default(), ["bf3ebbf268af9bc5", "37bd0d8da4735e97", "0a8f0b4d298e8b17"]),
        (Compressor::Lz4, ["5c39cbe32ac31200", "791af5c47fc68dd3", "ace55be45ba52555"]),
    ] {
        let (chunk_size, batch_size) = (SMALL_CHUNKS, Some(16 << 10));
        expect(expected, BuildOptions { compressor, chunk_size, batch_size, ..BuildOptions::default() });
    }
}

#[test]
fn a_dictionary() {
    let base = build_layer(&lower()[..], std::io::sink(), &BuildOptions::default()).unwrap();
    let dictionary = Dictionary::new(Image { tree: base.tree, blobs: base.blobs });
    expect(
        ["e6ed8461564850c7", "c80e1b6aadb7ed9a", "98f2cdcdb6ad54fb"],
        BuildOptions { dictionary: Some(Arc::new(dictionary)), ..BuildOptions::default() },
    );
}
