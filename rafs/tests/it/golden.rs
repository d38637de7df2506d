//! The bytes that builds give, pinned in every variant of the format, on any number of threads.
//!
//! A new version of a compressor may give other bytes: then the digests here change with it, knowingly.

use std::path::Path;
use std::sync::Arc;

use rafs::bootstrap::{self, Bootstrap, WriteOptions};
use rafs::build::{BuildOptions, Dictionary, build_layer};
use rafs::compress::Compressor;
use rafs::digest::DigestAlgorithm;
use rafs::limits::Limits;
use rafs::merge::merge;
use rafs::tree::Image;
use test_support::text;

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
        .file("large", &text(1, 300_000))
        .file("copy", &text(1, 300_000))
        .file("small-1", &text(2, 700))
        .file("small-2", &text(3, 5000))
        .file("removed", &text(4, 9000))
        .add("symlink", tar::EntryType::Symlink, b"", "etc/passwd")
        .add("hard-link", tar::EntryType::Link, b"", "small-1")
        .add("fifo", tar::EntryType::Fifo, b"", "")
        .finish()
}

fn upper() -> Vec<u8> {
    Archive::new()
        .file(".wh.removed", b"")
        .file("new", &text(5, 20_000))
        .file("etc/copy", &text(3, 5000))
        .finish()
}

/// Both layers' blobs and the bootstrap that merges them.
fn build(options: &BuildOptions) -> [Vec<u8>; 3] {
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
    let [lower, upper] = blobs;
    [lower, upper, bytes]
}

fn expect(expected: [&str; 3], options: BuildOptions) {
    for threads in [1, 2, 5] {
        let built = build(&BuildOptions { threads, ..options.clone() });
        let digests = built.map(|bytes| DigestAlgorithm::Sha256.digest(&bytes).to_string()[..16].to_owned());
        assert_eq!(digests, expected, "{threads} threads");
    }
}

/// Set, the snapshots are written again, for a change that is meant.
const UPDATE: &str = "UPDATE_GOLDEN";

/// Holds the dump of a bootstrap against the one that is kept as `name`: what differs is what moved.
fn expect_dump(name: &str, bootstrap: Vec<u8>) {
    let mut dump = Vec::new();
    let bootstrap = Bootstrap::from_bytes(bootstrap).unwrap();
    bootstrap::dump(&bootstrap, Limits::DEFAULT, &mut dump).unwrap();
    let dump = String::from_utf8(dump).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, &dump).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    let (kept, dump): (Vec<&str>, Vec<&str>) = (kept.lines().collect(), dump.lines().collect());
    let gone = kept.iter().filter(|line| !dump.contains(line)).map(|line| format!("- {line}"));
    let new = dump.iter().filter(|line| !kept.contains(line)).map(|line| format!("+ {line}"));
    let moved: Vec<String> = gone.chain(new).collect();
    assert!(kept == dump, "{name} has moved (with {UPDATE}=1 the test keeps it so):\n{}", moved.join("\n"));
}

#[test]
fn what_is_where_in_a_bootstrap() {
    let [.., bootstrap] = build(&BuildOptions::default());
    expect_dump("golden-zstd.dump", bootstrap);
    let options =
        BuildOptions { chunk_size: SMALL_CHUNKS, batch_size: Some(16 << 10), ..BuildOptions::default() };
    let [.., bootstrap] = build(&options);
    expect_dump("golden-batches.dump", bootstrap);
    // Upstream's own, of v5.
    expect_dump("v5-lz4.dump", include_bytes!("../data/v5-lz4.boot").to_vec());
}

const SMALL_CHUNKS: u32 = 64 << 10;

#[test]
fn zstd_with_blake3() {
    expect(["e2b4310ded97944f", "e58a1564068fb71f", "871a6052dee48008"], BuildOptions::default());
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
        ["f4ae949380449b8f", "155260acb471f977", "00ce8932912627f7"],
        BuildOptions { chunk_size: 16 << 20, ..BuildOptions::default() },
    );
}

#[test]
fn batches() {
    for (compressor, expected) in [
        (Compressor::default(), ["d32e9f405e34bfa9", "1dacd35b23194eb1", "19599825a6daa1e7"]),
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
        ["b2c86f7858a61941", "a027dcab770839a9", "cf9df7ddc7d06334"],
        BuildOptions { dictionary: Some(Arc::new(dictionary)), ..BuildOptions::default() },
    );
}
