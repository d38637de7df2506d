//! Layers built by hand, and what becomes of their chunks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use proptest::prelude::*;
use sha2::Digest as _;
use test_support::noise;

use super::*;
use crate::blob::decode::decode;
use crate::blob::{Blob, ChunkIndex};
use crate::bootstrap::WriteOptions;
use crate::build::tests::MemorySource;
use crate::build::{BuildOptions, build_source};
use crate::tree::{Kind, Layer, Tree};

fn sha256(bytes: &[u8]) -> Digest {
    Digest(sha2::Sha256::digest(bytes).into())
}

/// A blob stream in memory.
#[derive(Clone)]
struct LayerStream {
    id: Digest,
    bytes: Vec<u8>,
}

impl LayerStream {
    fn of(files: &[(&str, &[u8])]) -> Self {
        let mut source = MemorySource::default();
        for (path, content) in files {
            source.file(path, content);
        }
        let mut bytes = Vec::new();
        let options = BuildOptions { chunk_size: 4096, threads: 1, ..BuildOptions::default() };
        let layer = build_source(&mut source, &mut bytes, &options).unwrap();
        Self { id: layer.blobs[0].id.unwrap(), bytes }
    }

    fn read(&self, range: std::ops::Range<u64>) -> io::Result<Vec<u8>> {
        Ok(self.bytes[range.start as usize..range.end as usize].to_vec())
    }

    fn layer(&self) -> Layer {
        read_layer(self.id, self.bytes.len() as u64, None, |range| self.read(range)).unwrap()
    }

    fn blob(&self) -> Option<Blob> {
        read_chunks(self.id, self.bytes.len() as u64, None, |range| self.read(range)).unwrap()
    }
}

impl SharedSource for LayerStream {
    fn name(&self) -> String {
        self.id.to_string()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        out.copy_from_slice(&self.bytes[offset as usize..][..out.len()]);
        Ok(())
    }
}

/// What is stored.
#[derive(Clone, Default)]
struct Store {
    blobs: BTreeMap<Digest, Vec<u8>>,
}

impl Store {
    fn put(&mut self, bytes: Vec<u8>) -> Digest {
        let id = sha256(&bytes);
        self.blobs.insert(id, bytes);
        id
    }

    fn holders(&self) -> Holders {
        let streams = self.blobs.iter().map(|(id, bytes)| LayerStream { id: *id, bytes: bytes.clone() });
        Holders::new(streams.filter_map(|stream| stream.blob()).collect())
    }

    /// Saves layers that are images each by `images`; returns the layers' blobs, and the shared one.
    fn save(
        &mut self,
        layers: &[LayerStream],
        images: &[ImageUse],
        limits: SharingLimits,
    ) -> (Vec<Digest>, Option<Digest>) {
        let stored = self.holders();
        let opened: Vec<Layer> = layers.iter().map(LayerStream::layer).collect();
        let chunks: Vec<LayerChunks> = layers
            .iter()
            .zip(&opened)
            .map(|(stream, layer)| LayerChunks {
                id: stream.id,
                chunks: layer.blobs[0]
                    .chunks
                    .iter()
                    .map(|chunk| (content(chunk), chunk.compressed_size))
                    .collect(),
            })
            .collect();
        let decision = decide(&chunks, images, &stored, limits);
        let options = WriteOptions { chunk_size: 4096, ..WriteOptions::default() };
        let mut bytes = Vec::new();
        let of = |&(layer, chunk): &(usize, ChunkIndex)| {
            let source: &dyn SharedSource = &layers[layer];
            (source, chunk, &opened[layer].blobs[0].chunks[chunk.0 as usize])
        };
        let shared = (!decision.shared.is_empty()).then(|| {
            write_shared(decision.shared.iter().map(of), &opened[0].blobs[0], &options, &mut bytes).unwrap()
        });
        let shared_id = shared.as_ref().map(|_| self.put(bytes));
        assert_eq!(shared.as_ref().and_then(|blob| blob.id), shared_id);
        let mut ids = Vec::new();
        for (number, (stream, layer)) in layers.iter().zip(&opened).enumerate() {
            let mut bytes = Vec::new();
            let place = |chunk: &Chunk| decision.place(number, &content(chunk), &stored);
            rewrite(layer.clone(), stream, place, &stored, shared.as_ref(), &options, &mut bytes).unwrap();
            ids.push(self.put(bytes));
        }
        (ids, shared_id)
    }

    fn layer(&self, id: Digest) -> Layer {
        LayerStream { id, bytes: self.blobs[&id].clone() }.layer()
    }

    /// The files of a stored layer, read from whatever blobs they are in.
    fn files(&self, id: Digest) -> BTreeMap<String, Vec<u8>> {
        let layer = self.layer(id);
        let entries = layer.tree.entries(Tree::ROOT).unwrap();
        let files = entries.iter().map(|(name, &node)| {
            let Kind::Regular { chunks, .. } = &layer.tree.node(node).kind else { panic!("no file") };
            let content = chunks.iter().flat_map(|at| {
                let blob = &layer.blobs[usize::from(at.blob.0)];
                let chunk = &blob.chunks[at.chunk.0 as usize];
                let stored = &self.blobs[&blob.id.unwrap()][chunk.compressed_offset as usize..];
                decode(blob, chunk, &stored[..chunk.compressed_size as usize]).unwrap()
            });
            (String::from_utf8(name.to_vec()).unwrap(), content.collect())
        });
        files.collect()
    }

    /// The blobs that a stored layer names in addition to its own.
    fn foreign(&self, id: Digest) -> BTreeSet<Digest> {
        self.layer(id).blobs.iter().filter_map(|blob| blob.id).filter(|blob| *blob != id).collect()
    }

    fn chunk_bytes(&self) -> usize {
        self.holders().blobs().iter().map(|blob| blob.compressed_size as usize).sum()
    }
}

fn single(count: usize) -> Vec<ImageUse> {
    (0..count).map(|layer| ImageUse { new: vec![layer], ..ImageUse::default() }).collect()
}

#[test]
fn what_two_layers_have_is_stored_once_and_read_by_both() {
    let (a, b, both) = (noise(1, 5000), noise(2, 9000), noise(3, 20_000));
    let layers =
        [LayerStream::of(&[("x", &a), ("lib", &both)]), LayerStream::of(&[("lib2", &both), ("y", &b)])];
    let mut store = Store::default();
    let (ids, shared) = store.save(&layers, &single(2), SharingLimits::default());
    assert_eq!(store.chunk_bytes(), a.len() + b.len() + both.len());
    assert_eq!(store.foreign(ids[0]), BTreeSet::from([shared.unwrap()]));
    assert_eq!(store.files(ids[0]), [("lib".to_owned(), both.clone()), ("x".to_owned(), a)].into());
    assert_eq!(store.files(ids[1]), [("lib2".to_owned(), both), ("y".to_owned(), b)].into());
}

#[test]
fn a_new_image_uses_what_is_stored_and_changes_none_of_it() {
    let (old, new, both) = (noise(1, 9000), noise(2, 9000), noise(3, 20_000));
    let mut store = Store::default();
    store.save(&[LayerStream::of(&[("a", &old), ("lib", &both)])], &single(1), SharingLimits::default());
    let before = store.clone();
    let (ids, shared) = store.save(
        &[LayerStream::of(&[("a", &old), ("b", &new), ("lib", &both)])],
        &single(1),
        SharingLimits::default(),
    );
    assert_eq!(shared, None);
    assert!(before.blobs.iter().all(|(id, bytes)| store.blobs.get(id) == Some(bytes)));
    assert_eq!(store.chunk_bytes(), old.len() + new.len() + both.len());
    assert_eq!(store.files(ids[0]).len(), 3);
}

#[test]
fn an_image_names_no_more_foreign_blobs_than_it_may_and_keeps_those_that_it_uses_most() {
    let contents: Vec<Vec<u8>> = (0..6).map(|number| noise(number, 1000 + 500 * number as usize)).collect();
    let mut store = Store::default();
    let ids: Vec<Digest> = contents
        .iter()
        .map(|content| {
            store.save(&[LayerStream::of(&[("f", content)])], &single(1), SharingLimits::default()).0[0]
        })
        .collect();
    let names: Vec<String> = (0..6).map(|number| format!("f{number}")).collect();
    let files: Vec<(&str, &[u8])> =
        names.iter().map(String::as_str).zip(contents.iter().map(Vec::as_slice)).collect();
    let (new, _) = store.save(&[LayerStream::of(&files)], &single(1), SharingLimits { foreign: 2, all: 254 });
    assert_eq!(store.foreign(new[0]), BTreeSet::from([ids[4], ids[5]]));
    assert_eq!(store.files(new[0]).into_values().collect::<Vec<_>>(), contents);
    // The layer's own blob counts.
    let (new, _) =
        store.save(&[LayerStream::of(&files[..5])], &single(1), SharingLimits { foreign: 32, all: 3 });
    assert!(store.foreign(new[0]).len() <= 2);
}

#[test]
fn a_layer_of_two_images_keeps_to_what_both_may_use() {
    let (a, b) = (noise(1, 5000), noise(2, 6000));
    let mut store = Store::default();
    let stored = store.save(&[LayerStream::of(&[("f", &a)])], &single(1), SharingLimits::default()).0[0];
    let full =
        ImageUse { new: vec![0], foreign: BTreeSet::from([sha256(b"another")]), ..ImageUse::default() };
    let layer = [LayerStream::of(&[("f", &a), ("g", &b)])];
    let (ids, _) = store.save(&layer, &[single(1).remove(0), full], SharingLimits { foreign: 1, all: 254 });
    assert_eq!(store.foreign(ids[0]), BTreeSet::new());
    let (ids, _) = store.save(&layer, &single(1), SharingLimits { foreign: 1, all: 254 });
    assert!(store.foreign(ids[0]).contains(&stored) || store.foreign(ids[0]).len() == 1);
}

#[test]
fn what_is_no_layer_any_more_is_an_error() {
    let stream = LayerStream::of(&[("f", b"content")]);
    let size = stream.bytes.len() as u64;
    let wrong = read_layer(stream.id, size, Some(sha256(b"x")), |range| stream.read(range)).unwrap_err();
    assert!(wrong.to_string().contains("expected"), "{wrong}");
    let cut = read_layer(stream.id, size - 1, None, |range| stream.read(range)).unwrap_err();
    assert!(matches!(cut, StoredError::NoBootstrap { .. }), "{cut}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever layers have, and in whatever order they come: files are what they were, every chunk is stored once, and the
    /// blobs are the same.
    #[test]
    fn contents_decide(
        layers in prop::collection::vec(prop::collection::btree_map(0_u8..6, 0_u8..6, 1..5), 1..5),
        turn in 0_usize..5,
    ) {
        let names: Vec<String> = (0..6).map(|number| format!("f{number}")).collect();
        let contents: Vec<Vec<u8>> = (0..6).map(|seed| noise(seed, 900 + 3000 * seed as usize)).collect();
        let streams: Vec<LayerStream> = layers
            .iter()
            .map(|files| {
                let files: Vec<(&str, &[u8])> = files
                    .iter()
                    .map(|(name, content)| {
                        (names[usize::from(*name)].as_str(), contents[usize::from(*content)].as_slice())
                    })
                    .collect();
                LayerStream::of(&files)
            })
            .collect();
        let mut distinct = streams.clone();
        distinct.sort_by_key(|stream| stream.id);
        distinct.dedup_by_key(|stream| stream.id);
        let mut store = Store::default();
        let (ids, _) = store.save(&distinct, &single(distinct.len()), SharingLimits::default());
        for (stream, id) in distinct.iter().zip(&ids) {
            let mut plain = Store::default();
            plain.put(stream.bytes.clone());
            prop_assert_eq!(store.files(*id), plain.files(stream.id));
            prop_assert!(store.foreign(*id).len() <= 1);
        }
        let used: BTreeSet<u8> = layers.iter().flat_map(|files| files.values().copied()).collect();
        let bytes: usize = used.iter().map(|seed| contents[usize::from(*seed)].len()).sum();
        prop_assert_eq!(store.chunk_bytes(), bytes);
        distinct.rotate_left(turn % ids.len());
        let mut turned = Store::default();
        turned.save(&distinct, &single(distinct.len()), SharingLimits::default());
        prop_assert_eq!(turned.blobs, store.blobs);
    }
}
