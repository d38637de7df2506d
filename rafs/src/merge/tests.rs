//! Merging layers built by hand.

mod model;

use super::*;
use crate::blob::{Blob, BlobIndex, Chunk};
use crate::build::tests::{MemorySource, mode, paths};
use crate::build::{BuildOptions, build_source};
use crate::digest::Digest;
use crate::source::EntryKind;
use crate::tree::{DeviceNumber, Kind, Metadata, Tree};

fn merged(layers: &mut [MemorySource]) -> Image {
    merge(layers.iter_mut().map(MemorySource::build).collect()).unwrap()
}

fn all_paths(image: &Image) -> Vec<String> {
    paths(&image.tree).into_keys().filter(|path| !path.is_empty()).collect()
}

fn source(files: &[&str]) -> MemorySource {
    let mut source = MemorySource::default();
    for file in files {
        match file.strip_suffix('/') {
            Some(directory) => source.directory(directory, 0o755),
            None => source.file(file, file.as_bytes()),
        };
    }
    source
}

fn with_xattr(name: &str, value: &str) -> Metadata {
    let mut metadata = mode(0o755);
    metadata.xattrs.insert(name.as_bytes().into(), value.as_bytes().into());
    metadata
}

fn merged_paths(layers: &[&[&str]]) -> Vec<String> {
    all_paths(&merged(&mut layers.iter().map(|files| source(files)).collect::<Vec<_>>()))
}

#[test]
fn a_whiteout_removes_the_lower_entry() {
    let expected = ["/d", "/d/b"];
    assert_eq!(merged_paths(&[&["a", "d/a", "d/b", "e/x/y"], &[".wh.a", "d/.wh.a", ".wh.e"]]), expected);
    assert_eq!(merged_paths(&[&["a"], &[".wh.a", "a/new"]]), ["/a", "/a/new"]);
}

#[test]
fn a_whiteout_spares_its_own_layer_and_the_layers_above() {
    assert_eq!(merged_paths(&[&["d/old"], &[".wh.d", "d/new"], &["d/newer"]]), ["/d", "/d/new", "/d/newer"]);
}

#[test]
fn an_opaque_marker_empties_the_lower_directory() {
    assert_eq!(merged_paths(&[&["d/a", "d/e/b"], &["d/.wh..wh..opq", "d/c"]]), ["/d", "/d/c"]);
    assert_eq!(merged_paths(&[&["d/a"], &[".wh..wh..opq", "c"]]), ["/c"]);
}

#[test]
fn whiteouts_that_have_nothing_to_remove_vanish_from_every_layer() {
    let stray: &[&str] =
        &[".wh.x", "d/.wh..wh..opq", "d/.wh.y", ".wh..wh.plnk/1", ".wh..wh.aufs", ".wh.", ".wh..", ".wh..."];
    assert_eq!(merged_paths(&[stray]), ["/d"]);
    assert_eq!(merged_paths(&[stray, stray]), ["/d"]);
}

#[test]
fn overlayfs_whiteouts_and_opaque_directories_work_like_those_of_oci() {
    for prefix in ["trusted", "user"] {
        let whiteout = EntryKind::CharDevice(DeviceNumber { major: 0, minor: 0 });
        let mut upper = MemorySource::default();
        upper.add(b"a", mode(0), whiteout.clone(), &[]);
        upper.add(b"stray", mode(0), whiteout.clone(), &[]);
        upper.add(b"d", with_xattr(&format!("{prefix}.overlay.opaque"), "y"), EntryKind::Directory, &[]);
        upper.add(b"e", with_xattr(&format!("{prefix}.overlay.opaque"), "n"), EntryKind::Directory, &[]);
        let image = merged(&mut [upper.clone()]);
        assert_eq!(all_paths(&image), ["/d", "/e"]);
        let image = merged(&mut [source(&["a", "b", "d/x", "e/x"]), upper]);
        assert_eq!(all_paths(&image), ["/b", "/d", "/e", "/e/x"]);
        let shown = paths(&image.tree).into_values().all(|id| image.tree.node(id).metadata.xattrs.is_empty());
        assert!(shown, "overlayfs's own attributes are not shown");
    }
}

#[test]
fn a_whiteout_in_an_attribute_counts_where_its_directory_says_so() {
    for (flag, expected) in [("x", &["/d"][..]), ("y", &["/d", "/d/a"])] {
        let mut upper = MemorySource::default();
        upper.add(b"d", with_xattr("trusted.overlay.opaque", flag), EntryKind::Directory, &[]);
        upper.add(b"d/a", with_xattr("trusted.overlay.whiteout", ""), EntryKind::Regular { size: 0 }, &[]);
        assert_eq!(all_paths(&merged(&mut [source(&["d/a"]), upper])), expected);
    }
}

#[test]
fn other_devices_are_files() {
    let mut layer = MemorySource::default();
    layer.add(b"null", mode(0o666), EntryKind::CharDevice(DeviceNumber { major: 1, minor: 3 }), &[]);
    layer.add(b"disk", mode(0o666), EntryKind::BlockDevice(DeviceNumber { major: 0, minor: 0 }), &[]);
    assert_eq!(all_paths(&merged(&mut [layer])), ["/disk", "/null"]);
}

#[test]
fn files_replace_directories_and_the_reverse() {
    assert_eq!(merged_paths(&[&["a/b/c"], &["a"]]), ["/a"]);
    assert_eq!(merged_paths(&[&["a"], &["a/b"]]), ["/a", "/a/b"]);
}

#[test]
fn a_directory_has_the_metadata_of_the_highest_layer_that_has_an_entry_for_it() {
    let mut lower = MemorySource::default();
    lower.directory(".", 0o711).directory("d", 0o700).file("d/a", b"");
    let mut middle = MemorySource::default();
    middle.directory("d", 0o750);
    let mut upper = MemorySource::default();
    upper.file("d/b", b"");
    let image = merged(&mut [lower, middle, upper]);
    let paths = paths(&image.tree);
    assert_eq!(image.tree.node(paths["/d"]).metadata.permissions, 0o750);
    assert_eq!(image.tree.node(paths[""]).metadata.permissions, 0o711);
}

#[test]
fn an_implied_directory_over_a_symbolic_link_leads_through_it() {
    let mut lower = source(&["usr/bin/sh", "usr/lib/"]);
    lower
        .symlink("bin", "usr/bin")
        .symlink("usr/link", "../bin")
        .symlink("loop", "loop")
        .symlink("gone", "nowhere");
    let upper = source(&["bin/tool", "bin/.wh.sh", "usr/link/other", "loop/x", "gone/y", "usr/lib/z"]);
    let image = merged(&mut [lower.clone(), upper]);
    let expected = [
        "/bin",
        "/gone",
        "/gone/y",
        "/loop",
        "/loop/x",
        "/usr",
        "/usr/bin",
        "/usr/bin/other",
        "/usr/bin/tool",
        "/usr/lib",
        "/usr/lib/z",
        "/usr/link",
    ];
    assert_eq!(all_paths(&image), expected);
    let image = merged(&mut [lower, source(&["bin/", "bin/tool"])]);
    assert!(
        all_paths(&image).contains(&"/bin/tool".to_owned()),
        "an entry for the directory replaces the link"
    );
}

#[test]
fn hard_links_survive_until_one_of_them_is_replaced() {
    let mut lower = source(&["a"]);
    lower.link("b", "a").link("d/c", "a");
    let image = merged(&mut [lower, source(&["a", "x"])]);
    let paths = paths(&image.tree);
    assert_eq!(paths["/b"], paths["/d/c"]);
    assert_ne!(paths["/a"], paths["/b"]);
}

#[test]
fn content_that_an_earlier_blob_has_is_referred_to_there() {
    let mut lower = MemorySource::default();
    lower.file("a", b"shared").file("b", b"lower");
    let mut upper = MemorySource::default();
    upper.file("c", b"upper").file("d", b"shared").file(".wh.a", b"");
    let (lower, upper) = (lower.build(), upper.build());
    let ids = [&lower, &upper].map(|layer| layer.blobs[0].id);
    let image = merge(vec![lower, upper]).unwrap();
    assert_eq!(image.blobs.iter().map(|blob| blob.id).collect::<Vec<_>>(), ids);
    let paths = paths(&image.tree);
    let Kind::Regular { chunks, .. } = &image.tree.node(paths["/d"]).kind else { panic!() };
    assert_eq!(chunks[0].blob, BlobIndex(0));
    assert_eq!(
        image.blobs[0].chunks[chunks[0].chunk.0 as usize].digest,
        BuildOptions::default().digester.digest(b"shared")
    );
}

#[test]
fn blobs_come_in_order_of_first_use_and_unused_ones_are_dropped() {
    let layers = [&["z"][..], &["m"], &["gone"], &["a"], &[".wh.gone"]];
    let layers: Vec<_> = layers.iter().map(|files| source(files).build()).collect();
    let ids: Vec<_> = layers.iter().map(|layer| layer.blobs[0].id).collect();
    let image = merge(layers).unwrap();
    assert_eq!(image.blobs.iter().map(|blob| blob.id).collect::<Vec<_>>(), [ids[3], ids[1], ids[0]]);
}

#[test]
fn the_same_layer_twice_has_one_blob() {
    let layer = source(&["a", "b"]).build();
    let image = merge(vec![layer.clone(), source(&[".wh.a"]).build(), layer]).unwrap();
    assert_eq!(all_paths(&image), ["/a", "/b"]);
    assert_eq!(image.blobs.len(), 1);
}

/// As many layers, each with a file of its own.
fn stack_of(count: usize) -> Vec<Layer> {
    let template = source(&["f"]).build();
    let layer = |number: usize| {
        let mut tree = Tree::new();
        let file = tree.add(template.tree.node(template.tree.lookup([b"f".as_slice()]).unwrap()).clone());
        tree.entries_mut(Tree::ROOT).unwrap().insert(format!("{number}").into_bytes().into(), file);
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        let chunk = Chunk { digest: Digest(digest), ..template.blobs[0].chunks[0].clone() };
        let blob = Blob { id: Some(Digest(digest)), chunks: vec![chunk], ..template.blobs[0].clone() };
        Layer { tree, blobs: vec![blob] }
    };
    (0..count).map(layer).collect()
}

#[test]
fn more_than_254_used_blobs_are_an_error_and_unused_ones_are_not() {
    assert_eq!(merge(stack_of(254)).unwrap().blobs.len(), 254);
    let error = merge(stack_of(255)).unwrap_err();
    assert_eq!(error, MergeError::TooManyBlobs { limit: 254 });
    let mut layers = stack_of(300);
    layers.push(source(&[".wh..wh..opq", "only"]).build());
    assert_eq!(merge(layers).unwrap().blobs.len(), 1);
}

#[test]
fn layers_that_differ_in_chunk_size_or_digest_are_an_error() {
    let build = |options: BuildOptions| build_source(&mut source(&["f"]), std::io::sink(), &options).unwrap();
    let defaults = BuildOptions::default;
    let other_size = build(BuildOptions { chunk_size: 1 << 16, ..defaults() });
    let error = merge(vec![build(defaults()), other_size]).unwrap_err();
    assert_eq!(error, MergeError::ChunkSize { layer: 1, found: 1 << 16, expected: 1 << 20 });
    let other_digest = build(BuildOptions { digester: DigestAlgorithm::Sha256, ..defaults() });
    assert!(matches!(
        merge(vec![build(defaults()), other_digest]),
        Err(MergeError::Digester { layer: 1, .. })
    ));
}

#[test]
fn references_to_chunks_that_do_not_exist_are_an_error() {
    let mut layer = source(&["f"]).build();
    layer.blobs[0].chunks.clear();
    assert_eq!(merge(vec![layer]).unwrap_err(), MergeError::NoChunk { layer: 0, blob: 0, chunk: 0 });
    let mut layer = source(&["f"]).build();
    layer.blobs[0].id = None;
    assert_eq!(merge(vec![layer]).unwrap_err(), MergeError::NoId { layer: 0, blob: 0 });
}
