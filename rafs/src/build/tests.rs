//! Builds of sources made by hand.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::compress::Compressor;
use crate::digest::DigestAlgorithm;
use crate::source::{Entry, EntryKind, SourceError};
use crate::tree::{Kind, Metadata, NodeId, Tree};

/// Entries with contents.
#[derive(Clone, Default)]
pub(crate) struct MemorySource {
    entries: VecDeque<(Entry, Vec<u8>)>,
    content: Vec<u8>,
    read: usize,
}

impl std::fmt::Debug for MemorySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let entries = self.entries.iter().map(|(entry, content)| (&entry.path, &entry.kind, content.len()));
        f.debug_list().entries(entries).finish()
    }
}

impl MemorySource {
    /// Adds an entry; the size of regular files is that of their content.
    pub(crate) fn add(
        &mut self,
        path: &[u8],
        metadata: Metadata,
        kind: EntryKind,
        content: &[u8],
    ) -> &mut Self {
        self.entries.push_back((Entry { path: path.to_vec(), metadata, kind }, content.to_vec()));
        self
    }

    pub(crate) fn file(&mut self, path: &str, content: &[u8]) -> &mut Self {
        let kind = EntryKind::Regular { size: content.len() as u64 };
        self.add(path.as_bytes(), mode(0o644), kind, content)
    }

    pub(crate) fn directory(&mut self, path: &str, permissions: u16) -> &mut Self {
        self.add(path.as_bytes(), mode(permissions), EntryKind::Directory, &[])
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.add(path.as_bytes(), mode(0o777), EntryKind::Symlink(target.as_bytes().into()), &[])
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.add(path.as_bytes(), mode(0o644), EntryKind::HardLink(target.as_bytes().to_vec()), &[])
    }

    pub(crate) fn build(&mut self) -> Layer {
        build_source(self, std::io::sink(), &BuildOptions { threads: 2, ..BuildOptions::default() }).unwrap()
    }
}

impl Source for MemorySource {
    fn next_entry(&mut self) -> Result<Option<Entry>, SourceError> {
        let next = self.entries.pop_front();
        self.read = 0;
        Ok(next.map(|(entry, content)| {
            self.content = content;
            entry
        }))
    }

    fn read(&mut self, buf: &mut [u8]) -> Result<usize, SourceError> {
        // In odd pieces: readers must not rely on full buffers.
        let length = buf.len().min(self.content.len() - self.read).min(70_001);
        buf[..length].copy_from_slice(&self.content[self.read..][..length]);
        self.read += length;
        Ok(length)
    }
}

pub(crate) fn mode(permissions: u16) -> Metadata {
    Metadata { permissions, ..Metadata::default() }
}

/// Every path of a tree.
pub(crate) fn paths(tree: &Tree) -> BTreeMap<String, NodeId> {
    let mut found = BTreeMap::new();
    let mut stack = vec![(String::new(), Tree::ROOT)];
    while let Some((path, id)) = stack.pop() {
        for (name, &child) in tree.entries(id).into_iter().flatten() {
            stack.push((format!("{path}/{}", name.escape_ascii()), child));
        }
        found.insert(path, id);
    }
    found
}

/// A regular file's content, read back from the blob's bytes and checked against its digests.
fn content(layer: &Layer, blob: &[u8], id: NodeId) -> Vec<u8> {
    let Kind::Regular { size, chunks } = &layer.tree.node(id).kind else { panic!("not a regular file") };
    let mut content = Vec::new();
    for found in chunks {
        let own = &layer.blobs[usize::from(found.blob.0)];
        let chunk = &own.chunks[found.chunk.0 as usize];
        let stored = &blob[chunk.compressed_offset as usize..][..chunk.compressed_size as usize];
        let plain = match (chunk.compressed, own.compressor) {
            (false, _) => stored.to_vec(),
            (true, Compressor::Lz4) => lz4::block::decompress(stored, Some(1 << 24)).unwrap(),
            (true, _) => zstd::bulk::decompress(stored, 1 << 24).unwrap(),
        };
        let start = chunk.batch.map_or(0, |member| member.offset as usize);
        let plain = &plain[start..][..chunk.uncompressed_size as usize];
        assert_eq!(own.digester.digest(plain), chunk.digest);
        content.extend_from_slice(plain);
    }
    assert_eq!(content.len() as u64, *size);
    content
}

fn build_with(source: &MemorySource, options: &BuildOptions) -> (Layer, Vec<u8>) {
    let mut blob = Vec::new();
    let layer = build_source(&mut source.clone(), &mut blob, options).unwrap();
    (layer, blob)
}

/// Content that compresses somewhat, or not at all.
fn bytes(length: usize, seed: u8) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if seed.is_multiple_of(3) { (state >> 33) as u8 } else { b'a' + ((state >> 33) % 5) as u8 }
    };
    (0..length).map(next).collect()
}

fn a_source() -> impl Strategy<Value = MemorySource> {
    let length = prop_oneof![0..40usize, 0..5_000usize, Just(120_000), 4_090..4_100usize];
    prop::collection::vec((length, 0..6u8), 1..50).prop_map(|files| {
        let mut source = MemorySource::default();
        for (number, (length, seed)) in files.into_iter().enumerate() {
            source.file(&format!("d{}/f{number}", number % 7), &bytes(length, seed));
        }
        source
    })
}

fn some_options() -> impl Strategy<Value = BuildOptions> {
    let compressor = prop_oneof![Just(Compressor::None), Just(Compressor::Lz4), Just(Compressor::default())];
    let digester = prop_oneof![Just(DigestAlgorithm::Blake3), Just(DigestAlgorithm::Sha256)];
    let chunk_size = prop_oneof![Just(4096u32), Just(1 << 16), Just(1 << 20)];
    (compressor, digester, chunk_size, any::<bool>()).prop_map(|(compressor, digester, chunk_size, batch)| {
        let batch_size = (batch && compressor != Compressor::None).then_some(chunk_size.min(1 << 15));
        BuildOptions { compressor, digester, chunk_size, batch_size, ..BuildOptions::default() }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn every_number_of_threads_gives_the_same_bytes(source in a_source(), options in some_options()) {
        let (layer, blob) = build_with(&source, &BuildOptions { threads: 1, ..options.clone() });
        for threads in [2, 3, 7] {
            let (same_layer, same_blob) = build_with(&source, &BuildOptions { threads, ..options.clone() });
            prop_assert!(same_blob == blob, "{} threads", threads);
            prop_assert!(same_layer == layer, "{} threads", threads);
        }
    }

    #[test]
    fn contents_come_back(source in a_source(), options in some_options()) {
        let (layer, blob) = build_with(&source, &options);
        let paths = paths(&layer.tree);
        for (entry, expected) in &source.entries {
            let id = paths[&format!("/{}", str::from_utf8(&entry.path).unwrap())];
            prop_assert!(content(&layer, &blob, id) == *expected);
        }
        prop_assert_eq!(layer.blobs[0].stored_size, blob.len() as u64);
        prop_assert_eq!(layer.blobs[0].id, Some(DigestAlgorithm::Sha256.digest(&blob)));
    }

    #[test]
    fn chunks_lie_in_order_and_never_twice(source in a_source(), options in some_options()) {
        let (layer, _) = build_with(&source, &options);
        let blob = &layer.blobs[0];
        let mut digests = std::collections::HashSet::new();
        let (mut compressed, mut uncompressed, mut batch) = (0, 0, None);
        for chunk in &blob.chunks {
            // What is in a batch and the end of a larger file are not compared: which batch has it must not depend on timing.
            let of_its_kind = (chunk.digest, chunk.batch.is_some());
            prop_assert!(digests.insert(of_its_kind), "a content is stored twice");
            prop_assert_eq!(chunk.uncompressed_offset, uncompressed);
            prop_assert!(chunk.compressed || chunk.compressed_size == chunk.uncompressed_size);
            prop_assert!(chunk.batch.is_some() || !chunk.compressed || chunk.compressed_size < chunk.uncompressed_size);
            uncompressed += u64::from(chunk.uncompressed_size).next_multiple_of(4096);
            let index = chunk.batch.map(|member| member.index);
            if index.is_none() || index != batch {
                prop_assert_eq!(chunk.compressed_offset, compressed);
                compressed += u64::from(chunk.compressed_size);
            }
            batch = index;
        }
        prop_assert_eq!(blob.compressed_size, compressed);
        prop_assert_eq!(blob.uncompressed_size, uncompressed);
    }
}

#[test]
fn small_files_share_batches_and_larger_ones_do_not() {
    let mut source = MemorySource::default();
    for number in 0..100u8 {
        source.file(&format!("small{number}"), &bytes(200 + usize::from(number), number));
    }
    source.file("large", &bytes(40_000, 1)).file("again", &bytes(200, 0));
    let options = BuildOptions { batch_size: Some(1 << 14), ..BuildOptions::default() };
    let (layer, _) = build_with(&source, &options);
    let chunks = &layer.blobs[0].chunks;
    let members = chunks.iter().filter_map(|chunk| chunk.batch);
    assert_eq!(members.clone().count(), 100);
    assert_eq!(members.map(|member| member.index).max(), Some(1), "24,950 bytes need two batches of 16 KiB");
    assert_eq!(chunks.len(), 101);
}

#[test]
fn content_of_the_dictionary_is_not_stored_again() {
    let mut source = MemorySource::default();
    source.file("old", &bytes(3_000_000, 0)).file("small", b"old too");
    let (base, _) = build_with(&source, &BuildOptions::default());
    let id = base.blobs[0].id;
    let dictionary = Dictionary::new(crate::tree::Image { tree: base.tree, blobs: base.blobs });
    for batch_size in [None, Some(1 << 16)] {
        let mut source = MemorySource::default();
        source.file("a", &bytes(3_000_000, 0)).file("b", b"new").file("c", b"old too");
        let options = BuildOptions {
            dictionary: Some(Arc::new(dictionary.clone())),
            batch_size,
            ..BuildOptions::default()
        };
        let (layer, _) = build_with(&source, &options);
        assert_eq!(layer.blobs[0].chunks.len(), 1, "only \"new\" is new");
        assert_eq!(layer.blobs[1].id, id);
        let paths = paths(&layer.tree);
        for (path, blob) in [("/a", 1), ("/b", 0), ("/c", 1)] {
            let Kind::Regular { chunks, .. } = &layer.tree.node(paths[path]).kind else { panic!() };
            assert!(chunks.iter().all(|chunk| chunk.blob.0 == blob), "{path}");
        }
    }
}

#[test]
fn chunk_data_is_pinned() {
    let mut source = MemorySource::default();
    source
        .file("a", &bytes(300_000, 1))
        .file("b", &bytes(5_000, 3))
        .file("c", b"tiny")
        .file("d", &bytes(5_000, 1));
    let pinned = [
        (Compressor::None, None, "3508e834ba389ea5"),
        (Compressor::Lz4, None, "a407dcc201c345c0"),
        (Compressor::default(), None, "2fc623ce9a6b47e6"),
        (Compressor::default(), Some(1 << 14), "ebedcb7556238e4a"),
    ];
    for (compressor, batch_size, expected) in pinned {
        let options = BuildOptions { compressor, batch_size, chunk_size: 1 << 16, ..BuildOptions::default() };
        let (layer, blob) = build_with(&source, &options);
        let data = &blob[..layer.blobs[0].compressed_size as usize];
        let digest = DigestAlgorithm::Sha256.digest(data).to_string();
        // A new version of a compressor may give other bytes: then the digest here changes with it, knowingly.
        assert_eq!(&digest[..16], expected, "{compressor:?}, batch {batch_size:?}, {} bytes", data.len());
    }
}

#[test]
fn a_layer_without_content_has_a_blob_without_chunks() {
    let mut source = MemorySource::default();
    source.directory("etc", 0o755).file("etc/empty", b"");
    let (layer, blob) = build_with(&source, &BuildOptions::default());
    assert_eq!(layer.blobs[0].chunks, []);
    assert_eq!(layer.blobs[0].id, Some(DigestAlgorithm::Sha256.digest(&blob)));
}

/// Fails after some bytes.
struct Failing {
    left: usize,
}

impl Write for Failing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.left.checked_sub(bytes.len()) {
            Some(left) => self.left = left,
            None => return Err(std::io::Error::other("the registry hung up")),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_failing_output_ends_the_build_with_its_reason() {
    let mut source = MemorySource::default();
    for number in 0..60u8 {
        source.file(&format!("f{number}"), &bytes(1 << 20, number));
    }
    for left in [0, 1 << 20, 20 << 20] {
        let error =
            build_source(&mut source.clone(), Failing { left }, &BuildOptions::default()).unwrap_err();
        assert!(error.to_string().contains("cannot write the blob at offset"), "{error}");
        assert!(error.to_string().contains("the registry hung up"), "{error}");
    }
}

#[test]
fn content_that_ends_early_is_an_error_that_names_the_file() {
    let mut source = MemorySource::default();
    source.add(b"short", mode(0o644), EntryKind::Regular { size: 10 }, b"four");
    let error = build_source(&mut source, std::io::sink(), &BuildOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "content of \"short\" ended after 4 of 10 bytes");
}

#[test]
fn impossible_options_are_refused() {
    let defaults = BuildOptions::default;
    for options in [
        BuildOptions { chunk_size: 5000, ..defaults() },
        BuildOptions { chunk_size: 2048, ..defaults() },
        BuildOptions { chunk_size: 32 << 20, ..defaults() },
        BuildOptions { batch_size: Some(1 << 21), ..defaults() },
        BuildOptions { batch_size: Some(1 << 20), chunk_size: 16 << 20, ..defaults() },
        BuildOptions { batch_size: Some(4096), compressor: Compressor::None, ..defaults() },
        BuildOptions { compressor: Compressor::Zstd { level: 99 }, ..defaults() },
    ] {
        let result = build_source(&mut MemorySource::default(), std::io::sink(), &options);
        assert!(result.is_err(), "{options:?}");
    }
}
