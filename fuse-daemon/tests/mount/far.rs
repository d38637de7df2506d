//! A registry that takes long to answer.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use fuse_daemon::fs::Completeness;
use rafs::build::BuildOptions;
use test_support::{noise, tar_of};

use crate::faults::{Behaviour, Line, Watched};
use crate::image::{Node, Settings, TestImage};
use crate::{can_mount, eventually};

/// Long beside the time that a busy machine takes from a reader.
const ROUND_TRIP: Duration = Duration::from_millis(800);

/// Forty directories of forty files of 4,000 bytes each.
fn tree() -> Vec<(String, Vec<u8>)> {
    let file = |number: u32| (format!("d{:02}/f{:02}", number / 40, number % 40), noise(number.into(), 4000));
    (0..1600).map(file).collect()
}

#[test]
fn who_reads_a_tree_in_order_waits_for_few_of_its_files() {
    if !can_mount() {
        return;
    }
    let files = tree();
    let image = TestImage::build(&tar_of(&files), &BuildOptions::default());
    // As often as what is ahead doubles until it is all of the rest. On a machine that is busy with other tests reads of the cache may
    // take as long, but not always.
    let mut seen = Vec::new();
    while seen.len() < 5 && seen.last().is_none_or(|late: &Vec<String>| late.len() > 8) {
        seen.push(waited_for(&image, &files));
    }
    assert!(seen.last().is_some_and(|late| late.len() <= 8), "{seen:?} were waited for");
}

/// The files that somebody waited for who read a tree in order.
fn waited_for(image: &TestImage, files: &[(String, Vec<u8>)]) -> Vec<String> {
    let cache = tempfile::tempdir().unwrap();
    let node = Node::new(cache.path(), &Settings { request_bytes: 64 << 10, ..Settings::default() });
    let mount = node.mount_from(image, Watched::with(image, Behaviour::Slow(ROUND_TRIP)));
    let mut late = Vec::new();
    for (name, content) in files {
        let begun = Instant::now();
        assert!(mount.read(name).unwrap() == *content, "{name}");
        if begun.elapsed() > ROUND_TRIP * 3 / 4 {
            late.push(name.clone());
        }
    }
    late
}

/// How long a far line was idle, each time, while somebody read a tree over it in order.
fn idle_times(image: &TestImage, files: &[(String, Vec<u8>)]) -> Vec<Duration> {
    let cache = tempfile::tempdir().unwrap();
    let node = Node::new(cache.path(), &Settings { request_bytes: 256 << 10, ..Settings::default() });
    let line = Line::of(3 << 19);
    let mount = node.mount_from(image, Watched::with(image, Behaviour::Line(ROUND_TRIP, line.clone())));
    for (name, content) in files {
        assert!(mount.read(name).unwrap() == *content, "{name}");
    }
    // Where as much is ahead as comes in the time of one answer, and not of two, it is idle for half of that.
    line.idle().into_iter().filter(|idle| *idle > ROUND_TRIP / 3).collect()
}

#[test]
fn a_far_line_that_somebody_reads_over_in_order_is_idle_once() {
    if !can_mount() {
        return;
    }
    let files = tree();
    let image = TestImage::build(&tar_of(&files), &BuildOptions::default());
    // After the first request, of the size of one to a registry beside us: how far it is was not known. A machine that is busy with
    // other tests lets it be idle at other times too, but not always.
    let mut seen = Vec::new();
    while seen.len() < 5 && seen.last().is_none_or(|idle: &Vec<Duration>| idle.len() > 1) {
        seen.push(idle_times(&image, &files));
    }
    assert!(seen.last().is_some_and(|idle| idle.len() <= 1), "{seen:?}");
}

#[test]
fn who_reads_a_file_here_and_there_gets_little_else() {
    if !can_mount() {
        return;
    }
    let files = tree();
    let image = TestImage::build(&tar_of(&files), &BuildOptions::default());
    let cache = tempfile::tempdir().unwrap();
    let node = Node::new(cache.path(), &Settings { request_bytes: 16 << 10, ..Settings::default() });
    let backend = Watched::over(&image);
    let mount = node.mount_from(&image, backend.clone());
    let read: Vec<_> = files.iter().step_by(97).collect();
    for (name, content) in &read {
        assert!(mount.read(name).unwrap() == *content, "{name}");
    }
    // A busy machine may be taken for a far one, which is asked for four times as much.
    let bytes = backend.bytes();
    assert!(bytes <= read.len() * (64 << 10), "{bytes} bytes for {} files", read.len());
}

const CHUNK: usize = 64 << 10;

/// A program of five chunks that says, in its fourth, that it needs this loader and this library.
fn linked(seed: u64, loader: &str, library: &str) -> Vec<u8> {
    const ADDRESS: u64 = 0x40_0000;
    const ENTRIES: u64 = 3 * CHUNK as u64;
    const NAMES: u64 = ENTRIES + 1024;
    let mut bytes = noise(seed, 5 * CHUNK);
    let mut put = |at: u64, part: &[u8]| bytes[at as usize..][..part.len()].copy_from_slice(part);
    put(0, b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0");
    // Where the table of segments is; the size of an entry, and how many there are.
    put(32, &64_u64.to_le_bytes());
    put(54, &[56, 0, 3, 0]);
    // Of each its type, where it is in the file and in memory, and its size.
    let segments = [(1_u32, 0, 5 * CHUNK as u64), (2, ENTRIES, 64), (3, 512, loader.len() as u64 + 1)];
    for (number, (kind, at, size)) in (0..).zip(segments) {
        let place = 64 + 56 * number;
        put(place, &kind.to_le_bytes());
        for (field, value) in [(8, at), (16, ADDRESS + at), (32, size), (40, size)] {
            put(place + field, &value.to_le_bytes());
        }
    }
    put(512, loader.as_bytes());
    put(512 + loader.len() as u64, &[0]);
    let names = format!("\0{library}\0");
    for (number, (tag, value)) in (0..).zip([(5, ADDRESS + NAMES), (10, names.len() as u64), (1, 1), (0, 0)])
    {
        put(ENTRIES + 16 * number, &u64::to_le_bytes(tag));
        put(ENTRIES + 16 * number + 8, &u64::to_le_bytes(value));
    }
    put(NAMES, names.as_bytes());
    bytes
}

#[test]
fn libraries_of_a_far_program_come_before_the_loader_asks_for_them() {
    if !can_mount() {
        return;
    }
    let options = BuildOptions { chunk_size: CHUNK as u32, ..BuildOptions::default() };
    let files = [
        ("opt/loader", noise(1, 2 * CHUNK)),
        ("other", noise(2, 30 * CHUNK)),
        ("program", linked(3, "/opt/loader", "libone.so.1")),
        ("usr/lib/libtwo.so", noise(4, 3 * CHUNK)),
        ("usr/lib/x86_64-linux-gnu/libone.so", linked(5, "/none", "libtwo.so")),
    ];
    // As root file systems have them.
    let mut tar = tar::Builder::new(tar_of(&files));
    tar.get_mut().truncate(tar_of(&files).len() - 1024);
    for (link, target) in [("lib", "usr/lib"), ("usr/lib/x86_64-linux-gnu/libone.so.1", "libone.so")] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, link, target).unwrap();
    }
    let image = TestImage::build(&tar.into_inner().unwrap(), &options);
    let cache = tempfile::tempdir().unwrap();
    // Nothing comes along with what is read.
    let node = Node::new(cache.path(), &Settings { request_bytes: 1, ..Settings::default() });
    let backend = Watched::with(&image, Behaviour::Slow(Duration::from_millis(50)));
    let mount = node.mount_from(&image, backend);
    File::open(mount.path("program")).unwrap().read_exact_at(&mut [0; 4096], 0).unwrap();
    eventually("all but the other file is there", || {
        mount.mounted.completeness() == Completeness { ready: 15, all: 45 }
    });
    std::fs::remove_dir_all(image.blobs()).unwrap();
    for (name, content) in files.iter().filter(|(name, _)| *name != "other") {
        assert!(mount.read(name).unwrap() == *content, "{name}");
    }
}
