//! What is fetched before somebody reads it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use fuse_daemon::fs::Completeness;
use fuse_daemon::prefetch::PrefetchConfig;
use rafs::build::BuildOptions;
use test_support::{noise, tar_of};

use crate::image::{Node, Settings, TestImage};
use crate::{can_mount, eventually};

const CHUNK: usize = 64 << 10;

fn options() -> BuildOptions {
    BuildOptions { chunk_size: CHUNK as u32, ..BuildOptions::default() }
}

/// Nothing comes along with what is read.
fn settings(prefetch: PrefetchConfig) -> Settings {
    Settings { request_bytes: 1, prefetch, ..Settings::default() }
}

const NOTHING: PrefetchConfig = PrefetchConfig { table: false, programs: false, complete_after: None };

#[test]
fn files_and_directories_of_the_prefetch_table_are_fetched_without_being_read() {
    if !can_mount() {
        return;
    }
    let files = [("a", 3), ("dir/b", 2), ("dir/deep/c", 4), ("other", 5)];
    let files = files.map(|(name, chunks)| (name, noise(chunks, chunks as usize * CHUNK)));
    let image = TestImage::build_layers_with(&[&tar_of(&files)], &options(), &["/dir", "/a"]);
    let cache = tempfile::tempdir().unwrap();
    let node = Node::new(cache.path(), &settings(PrefetchConfig { table: true, ..NOTHING }));
    let mount = node.mount(&image);
    eventually("the table's files are there, and no others", || {
        mount.mounted.completeness() == Completeness { ready: 9, all: 14 }
    });
    // They need nobody any more; the others do.
    std::fs::remove_file(image.blob_file()).unwrap();
    for (name, content) in &files[..3] {
        assert!(mount.read(name).unwrap() == *content, "{name}");
    }
    assert!(mount.read("other").is_err());
}

#[test]
fn an_image_that_is_complete_needs_nobody() {
    if !can_mount() {
        return;
    }
    let layers = [("a", noise(1, 5 * CHUNK)), ("b", noise(2, 300 * CHUNK))].map(|file| tar_of(&[file]));
    let image = TestImage::build_layers(&[&layers[0], &layers[1]], &options());
    let cache = tempfile::tempdir().unwrap();
    let complete_after = Some(Duration::from_millis(1));
    let node = Node::new(cache.path(), &settings(PrefetchConfig { complete_after, ..NOTHING }));
    let mount = node.mount(&image);
    eventually("all of it is there", || {
        let Completeness { ready, all } = mount.mounted.completeness();
        all == 305 && ready == all
    });
    std::fs::remove_dir_all(image.blobs()).unwrap();
    assert!(mount.read("a").unwrap() == noise(1, 5 * CHUNK));
    assert!(mount.read("b").unwrap() == noise(2, 300 * CHUNK));
}

/// A file of 64 chunks that begins like a program, whose linker left a note of this name.
fn program(name: &[u8; 4]) -> Vec<u8> {
    let mut bytes = noise(9, 64 * CHUNK);
    let mut head = [0; 140];
    head[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    // Where the table of segments is, the size of an entry, and how many there are.
    (head[32], head[54], head[56]) = (64, 56, 1);
    // A segment of notes at 120, of 20 bytes.
    (head[64], head[72], head[96], head[112]) = (4, 120, 20, 4);
    // Sizes of name and content, and the type.
    (head[120], head[124], head[128]) = (3, 4, 4);
    head[132..136].copy_from_slice(name);
    bytes[..140].copy_from_slice(&head);
    bytes
}

fn tar_of_program(content: &[u8], mode: u32) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, "program", content).unwrap();
    tar.into_inner().unwrap()
}

#[test]
fn a_program_of_go_comes_whole_when_its_first_page_is_read_and_others_do_not() {
    if !can_mount() {
        return;
    }
    let whole = |name: &[u8; 4], mode| {
        let image = TestImage::build(&tar_of_program(&program(name), mode), &options());
        let cache = tempfile::tempdir().unwrap();
        let node = Node::new(cache.path(), &settings(PrefetchConfig { programs: true, ..NOTHING }));
        let mount = node.mount(&image);
        let mut page = [0; 4096];
        File::open(mount.path("program")).unwrap().read_exact_at(&mut page, 0).unwrap();
        let come = mount.mounted.completeness().ready;
        (mount.read("program").unwrap() == program(name), come, mount, node, image, cache)
    };
    let image = TestImage::build(&tar_of_program(&program(b"Go\0\0"), 0o755), &options());
    let cache = tempfile::tempdir().unwrap();
    let node = Node::new(cache.path(), &settings(PrefetchConfig { programs: true, ..NOTHING }));
    let mount = node.mount(&image);
    let mut page = [0; 4096];
    File::open(mount.path("program")).unwrap().read_exact_at(&mut page, 0).unwrap();
    eventually("all of it is there", || mount.mounted.completeness() == Completeness { ready: 64, all: 64 });
    std::fs::remove_dir_all(image.blobs()).unwrap();
    assert!(mount.read("program").unwrap() == program(b"Go\0\0"));
    // What the kernel reads ahead is far from all.
    for (name, mode) in [(b"GNU\0", 0o755), (b"Go\0\0", 0o644)] {
        let (same, come, ..) = whole(name, mode);
        assert!(same && come < 32, "{come} chunks came with the first page");
    }
}

#[test]
fn a_trace_names_the_files_that_were_read_in_order_and_serves_as_prefetch_list() {
    if !can_mount() {
        return;
    }
    let names = ["x", "usr/lib/y", "usr/z", "unread"];
    let files: Vec<_> =
        names.iter().enumerate().map(|(seed, name)| (name, noise(seed as u64, CHUNK))).collect();
    let tar = tar_of(&files);
    let image = TestImage::build(&tar, &options());
    let cache = tempfile::tempdir().unwrap();
    let node = Node::new(cache.path(), &settings(NOTHING));
    let mount = node.mount(&image);
    for name in ["usr/z", "x", "usr/lib/y", "x"] {
        mount.read(name).unwrap();
    }
    let trace = mount.mounted.trace().unwrap();
    let trace: Vec<&str> = trace.iter().map(|path| str::from_utf8(path).unwrap()).collect();
    assert_eq!(trace, ["/usr/z", "/x", "/usr/lib/y"]);
    let image = TestImage::build_layers_with(&[&tar], &options(), &trace);
    let cache = tempfile::tempdir().unwrap();
    let node = Node::new(cache.path(), &settings(PrefetchConfig { table: true, ..NOTHING }));
    let mount = node.mount(&image);
    eventually("what the trace names is there", || {
        mount.mounted.completeness() == Completeness { ready: 3, all: 4 }
    });
}
