//! Comparing images built by hand.

use test_support::noise;

use super::*;
use crate::build::tests::{MemorySource, mode};
use crate::build::{BuildOptions, build_source};
use crate::digest::DigestAlgorithm;
use crate::merge::merge;
use crate::source::EntryKind;
use crate::tree::{DeviceNumber, Image, Metadata, Time};

fn image(layers: &mut [MemorySource]) -> Image {
    merge(layers.iter_mut().map(MemorySource::build).collect()).unwrap()
}

fn with_options(source: &mut MemorySource, options: BuildOptions) -> (Image, Vec<u8>) {
    let mut blob = Vec::new();
    let layer = build_source(source, &mut blob, &options).unwrap();
    (merge(vec![layer]).unwrap(), blob)
}

/// Each change as a line.
fn changes(a: &Image, b: &Image) -> Vec<String> {
    let mut lines = Vec::new();
    let mut never = |_: &[_], _: &[_]| panic!("digests say it");
    images(a, b, &mut never, &mut |change| lines.push(line(&change))).unwrap();
    lines
}

fn line(change: &Change) -> String {
    let path = change.shown();
    match &change.what {
        ChangeKind::Added(side) => format!("+ {path} {:?} {}", side.kind, side.bytes),
        ChangeKind::Removed(side) => format!("- {path} {:?} {}", side.kind, side.bytes),
        ChangeKind::Changed(differences) => {
            let texts: Vec<_> = differences.iter().map(ToString::to_string).collect();
            format!("  {path} {}", texts.join(", "))
        }
    }
}

#[test]
fn an_image_does_not_differ_from_itself() {
    let mut source = MemorySource::default();
    source.directory("d", 0o755).file("d/f", b"content").link("d/g", "d/f").symlink("s", "d/f");
    let image = image(&mut [source]);
    assert_eq!(changes(&image, &image), [""; 0]);
}

#[test]
fn added_removed_and_changed_paths_are_told_apart() {
    let mut a = MemorySource::default();
    a.directory("gone", 0o755)
        .file("gone/x", b"123")
        .file("same", b"same")
        .file("content", b"old")
        .file("mode", b"");
    let mut b = MemorySource::default();
    b.file("same", b"same").file("content", b"newer").directory("mode", 0o644).file("new", b"12345");
    let expected = [
        "  /content size 3 -> 5, content from byte 0 on",
        "- /gone Directory 0",
        "- /gone/x Regular 3",
        "  /mode type regular -> directory",
        "+ /new Regular 5",
    ];
    assert_eq!(changes(&image(&mut [a]), &image(&mut [b])), expected);
}

#[test]
fn every_part_of_the_metadata_counts() {
    let xattrs = |all: [(&str, &str); 2]| {
        all.map(|(name, value)| (name.as_bytes().into(), value.as_bytes().into())).into()
    };
    let (ours, theirs) = (
        Metadata {
            permissions: 0o4755,
            uid: 1,
            gid: 2,
            mtime: Time { seconds: 5, nanoseconds: 6 },
            xattrs: xattrs([("user.a", "1"), ("user.b", "2")]),
        },
        Metadata {
            permissions: 0o755,
            uid: 7,
            gid: 2,
            mtime: Time { seconds: 5, nanoseconds: 7 },
            xattrs: xattrs([("user.a", "x"), ("user.c", "3")]),
        },
    );
    let mut a = MemorySource::default();
    a.add(b"f", ours, EntryKind::Regular { size: 0 }, b"");
    a.add(b"dev", mode(0), EntryKind::CharDevice(DeviceNumber { major: 1, minor: 3 }), b"").symlink("s", "a");
    let mut b = MemorySource::default();
    b.add(b"f", theirs, EntryKind::Regular { size: 0 }, b"").symlink("s", "b");
    b.add(b"dev", mode(0), EntryKind::CharDevice(DeviceNumber { major: 1, minor: 5 }), b"");
    let expected = [
        "  /dev device 1:3 -> 1:5",
        "  /f mode 4755 -> 0755, owner 1:2 -> 7:2, mtime 5.000000006 -> 5.000000007, \
         xattr user.a \"1\" -> \"x\", xattr user.b \"2\" -> (none), xattr user.c (none) -> \"3\"",
        "  /s link target \"a\" -> \"b\"",
    ];
    assert_eq!(changes(&image(&mut [a]), &image(&mut [b])), expected);
}

#[test]
fn only_the_changed_chunk_of_a_file_counts() {
    let old = noise(1, 3 << 20);
    let mut new = old.clone();
    new[(1 << 20) + 5] ^= 1;
    let (mut a, mut b) = (MemorySource::default(), MemorySource::default());
    a.file("f", &old);
    b.file("f", &new).link("g", "f");
    let (a, b) = (image(&mut [a]), image(&mut [b]));
    let mut bytes = Vec::new();
    let mut never = |_: &[_], _: &[_]| panic!("digests say it");
    images(&a, &b, &mut never, &mut |change| bytes.push(change.what)).unwrap();
    let content = Difference::Content { offset: Some(1 << 20), bytes: 1 << 20 };
    assert_eq!(bytes[0], ChangeKind::Changed(vec![content]));
}

#[test]
fn groups_of_hard_links_are_compared_by_the_names_that_both_have() {
    let (mut a, mut b, mut c) = (MemorySource::default(), MemorySource::default(), MemorySource::default());
    a.file("a", b"x").link("b", "a").link("c", "a");
    b.file("b", b"x").link("c", "b");
    c.file("a", b"x").file("b", b"x").link("c", "a");
    let (a, b, c) = (image(&mut [a]), image(&mut [b]), image(&mut [c]));
    assert_eq!(changes(&a, &b), ["- /a Regular 1"], "the others are still one file");
    assert_eq!(changes(&a, &c), ["  /b hard link \"/a\" -> \"/b\""]);
    assert_eq!(changes(&c, &a), ["  /b hard link \"/b\" -> \"/a\""]);
}

#[test]
fn the_metadata_of_an_implied_directory_is_nobodys_business() {
    let (mut a, mut b) = (MemorySource::default(), MemorySource::default());
    a.file("d/f", b"");
    b.directory("d", 0o700).file("d/f", b"");
    let (a, b) = (image(&mut [a]), image(&mut [b]));
    assert_eq!(changes(&a, &b), [""; 0]);
    assert_eq!(changes(&b, &a), ["  /d mode 0700 -> 0755"]);
}

#[test]
fn content_is_read_where_digests_say_nothing() {
    let mut source = MemorySource::default();
    source.file("f", b"content").file("empty", b"");
    let (a, _) = with_options(&mut source.clone(), BuildOptions::default());
    let sha256 = BuildOptions { digester: DigestAlgorithm::Sha256, ..BuildOptions::default() };
    let (b, _) = with_options(&mut source, sha256);
    for (answer, expected) in [(None, 0), (Some(3), 1)] {
        let mut lines = Vec::new();
        let mut reads = 0;
        let mut read = |_: &[_], _: &[_]| {
            reads += 1;
            Ok(answer)
        };
        images(&a, &b, &mut read, &mut |change| lines.push(line(&change))).unwrap();
        assert_eq!((reads, lines.len()), (1, expected), "{lines:?}");
    }
}

#[test]
fn a_node_fetches_what_it_has_not_in_the_same_blob() {
    let base = || {
        let mut base = MemorySource::default();
        base.file("base", &noise(1, 100_000)).file("moved", &noise(2, 50_000));
        base
    };
    let (mut app_1, mut app_2) = (MemorySource::default(), MemorySource::default());
    app_1.file("app", &noise(3, 10_000)).file("kept", &noise(5, 20_000));
    app_2.file("app", &noise(4, 12_000)).file("kept", &noise(5, 20_000));
    let (a, b) = (image(&mut [base(), app_1]), image(&mut [base(), app_2]));
    let fetched = fetch(&a, &b);
    let [app, base] = &fetched.blobs[..] else { panic!("{fetched:?}") };
    assert!(base.shared && base.chunks == 0 && base.stored_bytes == 0, "{base:?}");
    assert!(!app.shared);
    // The file that did not change is in the new layer's blob, which the node does not have.
    assert_eq!((app.chunks, app.content_bytes, app.new_chunks), (2, 32_000, 1));
    let stored: Vec<_> = b.blobs[0].chunks.iter().map(|chunk| u64::from(chunk.compressed_size)).collect();
    assert_eq!(app.stored_bytes, stored.iter().sum::<u64>());
    assert_eq!(app.new_stored_bytes, stored[0]);
    assert_eq!(fetch(&a, &a).stored_bytes(), 0);
}

#[test]
fn a_file_of_a_shared_blob_that_the_first_image_deletes_is_fetched() {
    let base = || {
        let mut base = MemorySource::default();
        base.file("deleted", &noise(1, 100_000)).file("kept", &noise(2, 50_000));
        base
    };
    let mut whiteout = MemorySource::default();
    whiteout.file(".wh.deleted", b"");
    let fetched = fetch(&image(&mut [base(), whiteout]), &image(&mut [base()]));
    assert!(fetched.blobs[0].shared);
    assert_eq!((fetched.blobs[0].chunks, fetched.blobs[0].new_chunks), (1, 1));
}

#[test]
fn a_batch_is_fetched_once_and_whole() {
    let mut source = MemorySource::default();
    for number in 0..40u8 {
        source.file(&format!("f{number}"), &[b'a' + number; 700]);
    }
    let options = BuildOptions { batch_size: Some(1 << 16), ..BuildOptions::default() };
    let (b, _) = with_options(&mut source.clone(), options.clone());
    let a = image(&mut [MemorySource::default()]);
    let fetched = fetch(&a, &b);
    assert_eq!(fetched.blobs[0].chunks, 40);
    assert_eq!(fetched.blobs[0].stored_bytes, b.blobs[0].compressed_size);

    let mut whiteouts = MemorySource::default();
    (1..40u8).for_each(|number| _ = whiteouts.file(&format!(".wh.f{number}"), b""));
    let layer = build_source(&mut source, Vec::new(), &options).unwrap();
    let a = merge(vec![layer, whiteouts.build()]).unwrap();
    assert_eq!(fetch(&a, &b).stored_bytes(), 0, "with the one file came the others");
}
