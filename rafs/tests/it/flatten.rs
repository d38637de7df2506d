//! Building a merged image again: one blob with what its files show, and nothing else.

use std::collections::HashSet;
use std::io;
use std::ops::Range;

use rafs::blob::Blob;
use rafs::blob::source::BlobSource;
use rafs::build::{BuildOptions, build_layer, build_source};
use rafs::compress::Compressor;
use rafs::digest::Digest;
use rafs::merge::merge;
use rafs::source::image::ImageSource;
use rafs::tree::{Image, Kind, Layer, NodeId, Tree};
use test_support::noise;

/// Blobs in memory.
#[derive(Default)]
struct Blobs(Vec<(Digest, Vec<u8>)>);

impl Blobs {
    fn find(&self, blob: &Blob) -> io::Result<&[u8]> {
        let found = self.0.iter().find(|(id, _)| Some(*id) == blob.id).map(|(_, bytes)| bytes.as_slice());
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl BlobSource for Blobs {
    fn size(&self, blob: &Blob) -> io::Result<u64> {
        Ok(self.find(blob)?.len() as u64)
    }

    fn read(&self, blob: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        Ok(self.find(blob)?[range.start as usize..range.end as usize].to_vec())
    }
}

enum Item<'a> {
    Directory,
    File(&'a [u8]),
    Link(&'a str),
    Symlink(&'a str),
}

fn tar_of(items: &[(&str, Item<'_>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (number, (path, item)) in items.iter().enumerate() {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o640 + number as u32 % 8);
        header.set_mtime(1_000_000 + number as u64);
        header.set_size(0);
        let mut content: &[u8] = &[];
        match item {
            Item::Directory => header.set_entry_type(tar::EntryType::Directory),
            Item::File(bytes) => {
                header.set_size(bytes.len() as u64);
                content = bytes;
                let attribute = format!("user.number={number}\n");
                let record = attribute.len() + " SCHILY.xattr.".len();
                let length = record + (record + 2).to_string().len();
                let pax = format!("{length} SCHILY.xattr.{attribute}");
                let mut extension = tar::Header::new_ustar();
                extension.set_entry_type(tar::EntryType::XHeader);
                extension.set_size(pax.len() as u64);
                tar.append_data(&mut extension, "pax", pax.as_bytes()).unwrap();
            }
            Item::Link(target) => {
                header.set_entry_type(tar::EntryType::Link);
                header.set_link_name(target).unwrap();
            }
            Item::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_link_name(target).unwrap();
            }
        }
        tar.append_data(&mut header, path, content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn built(tar: &[u8], options: &BuildOptions, blobs: &mut Blobs) -> Layer {
    let mut blob = Vec::new();
    let layer = build_layer(tar, &mut blob, options).unwrap();
    blobs.0.push((layer.blobs[0].id.unwrap(), blob));
    layer
}

/// Every path of a tree with what a user sees there; hard links as sets of paths.
fn listed(tree: &Tree, blobs: &[Blob]) -> Vec<String> {
    let mut paths: Vec<(String, NodeId)> = Vec::new();
    let mut todo = vec![(String::new(), Tree::ROOT)];
    while let Some((path, id)) = todo.pop() {
        for (name, child) in tree.entries(id).into_iter().flatten() {
            todo.push((format!("{path}/{}", String::from_utf8_lossy(name)), *child));
        }
        paths.push((path, id));
    }
    paths.sort();
    let shown = |(path, id): &(String, NodeId)| {
        let node = tree.node(*id);
        let what = match &node.kind {
            Kind::Directory(_) => "directory".to_owned(),
            Kind::Regular { size, chunks } => {
                let digest = |chunk: &rafs::tree::ChunkRef| {
                    blobs[usize::from(chunk.blob.0)].chunks[chunk.chunk.0 as usize].digest.to_string()
                };
                format!("{size} {:?}", chunks.iter().map(digest).collect::<Vec<_>>())
            }
            other => format!("{other:?}"),
        };
        let linked: Vec<&str> =
            paths.iter().filter(|(_, other)| other == id).map(|(path, _)| path.as_str()).collect();
        format!("{path} {:?} {what} {linked:?}", node.metadata)
    };
    paths.iter().map(shown).collect()
}

/// Two layers: the upper one deletes, overwrites, hides behind an opaque directory, and links to what is below.
fn layered(options: &BuildOptions, blobs: &mut Blobs) -> (Image, [Vec<u8>; 4]) {
    let contents = [noise(1, 150_000), noise(2, 70_000), noise(3, 30_000), noise(4, 2_000)];
    let [kept, deleted, overwritten, hidden] = &contents;
    let lower = tar_of(&[
        ("a", Item::Directory),
        ("a/kept", Item::File(kept)),
        ("a/link", Item::Link("a/kept")),
        ("a/deleted", Item::File(deleted)),
        ("a/overwritten", Item::File(overwritten)),
        ("o", Item::Directory),
        ("o/hidden", Item::File(hidden)),
        ("z", Item::Symlink("a/kept")),
    ]);
    let upper = tar_of(&[
        ("a/.wh.deleted", Item::File(b"")),
        ("a/overwritten", Item::File(b"new")),
        ("o/.wh..wh..opq", Item::File(b"")),
        ("o/shown", Item::File(b"shown")),
        ("o/small", Item::File(b"small")),
        ("q", Item::File(b"last by its path")),
    ]);
    let layers = [lower, upper].iter().map(|tar| built(tar, options, blobs)).collect();
    (merge(layers).unwrap(), contents)
}

#[test]
fn one_blob_has_what_the_files_show_those_to_be_fetched_first_in_front() {
    let small = BuildOptions { chunk_size: 65_536, threads: 2, ..BuildOptions::default() };
    let lz4 = BuildOptions { compressor: Compressor::Lz4, ..small.clone() };
    for options in [small.clone(), BuildOptions { batch_size: Some(16_384), ..small.clone() }] {
        for below in [&lz4, &options] {
            let mut blobs = Blobs::default();
            let (image, [kept, deleted, overwritten, hidden]) = layered(below, &mut blobs);
            let first: Vec<Box<[u8]>> =
                ["/q", "o", "/none", "q"].iter().map(|path| path.as_bytes().into()).collect();
            let mut source = ImageSource::new(&image, &blobs, &first);
            let mut blob = Vec::new();
            let layer = build_source(&mut source, &mut blob, &options).unwrap();
            assert_eq!(layer.blobs.len(), 1);
            let flat = merge(vec![layer]).unwrap();
            assert_eq!(listed(&flat.tree, &flat.blobs), listed(&image.tree, &image.blobs));

            let digests: Vec<Digest> = flat.blobs[0].chunks.iter().map(|chunk| chunk.digest).collect();
            let of = |content: &[u8]| options.digester.digest(content);
            for gone in [&deleted[..65_536], &overwritten, &hidden] {
                assert!(!digests.contains(&of(gone)), "what nobody sees is stored");
            }
            assert!(digests.contains(&of(&kept[..65_536])));
            assert_eq!(digests.iter().collect::<HashSet<_>>().len(), digests.len());
            if options.batch_size.is_none() {
                let front = [&b"last by its path"[..], b"shown", b"small"].map(of);
                assert_eq!(digests[..3], front);
            }
        }
    }
}

#[test]
fn a_blob_that_is_not_there_is_named() {
    let options = BuildOptions::default();
    let (image, _) = layered(&options, &mut Blobs::default());
    let nothing = Blobs::default();
    let mut source = ImageSource::new(&image, &nothing, &[]);
    let error = build_source(&mut source, io::sink(), &options).unwrap_err().to_string();
    assert!(error.contains(&image.blobs[0].id.unwrap().to_string()), "{error}");
}
