//! Chunk information that bootstraps lack is kept in the cache.

use std::path::{Path, PathBuf};

use fuse_daemon::mounts::MountError;
use rafs::build::BuildOptions;
use test_support::tar_of;

use crate::can_mount;
use crate::faults::Watched;
use crate::image::{FIRST_BOOT, Node, SECOND_BOOT, Settings, TestImage, TestMount, small_files};

/// What a kept file has in front of the parts (`cache/chunk_info.rs`), …
const FILE_HEADER_BYTES: usize = 80;
/// … of which the first is the header of the chunk information, and the next the array.
const INFO_HEADER_BYTES: usize = 4096;

/// An image with batches: its bootstrap does not say what is in them.
fn batched() -> TestImage {
    let options = BuildOptions { batch_size: Some(65_536), ..BuildOptions::default() };
    TestImage::build(&tar_of(&small_files()), &options)
}

fn all_is_right(mount: &TestMount) {
    for (name, content) in small_files() {
        assert!(mount.read(&name).unwrap() == content, "{name}");
    }
}

/// The files with chunk information in a cache.
fn kept(cache: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.to_str().unwrap().contains(".chunk_info.")).collect()
}

#[test]
fn an_image_that_is_complete_in_the_cache_is_mounted_again_while_nobody_has_its_blobs() {
    if !can_mount() {
        return;
    }
    let image = batched();
    let cache = tempfile::tempdir().unwrap();
    {
        let node = Node::new(cache.path(), &Settings::default());
        all_is_right(&node.mount(&image));
    }
    std::fs::remove_dir_all(image.blobs()).unwrap();
    for boot in [FIRST_BOOT, SECOND_BOOT] {
        let node = Node::new(cache.path(), &Settings { boot, ..Settings::default() });
        all_is_right(&node.mount(&image));
    }
    // It goes with its blob.
    let node = Node::new(cache.path(), &Settings::default());
    assert_eq!(node.engine.cache().prune().unwrap().freed.len(), 1);
    assert!(kept(cache.path()).is_empty());
    let mounted = node.try_mount_from(&image, image.backend());
    assert!(matches!(mounted, Err(MountError::ChunkInfo { .. })));
}

#[test]
fn kept_chunk_information_that_was_changed_is_fetched_again() {
    if !can_mount() {
        return;
    }
    let image = batched();
    let cache = tempfile::tempdir().unwrap();
    // Reads from the backend, of a mount that is read from.
    let mount = || {
        let node = Node::new(cache.path(), &Settings::default());
        let backend = Watched::over(&image);
        all_is_right(&node.mount_from(&image, backend.clone()));
        backend.reads()
    };
    assert!(mount() > 0);
    assert_eq!(mount(), 0, "all of it is there");
    let files = kept(cache.path());
    let [file] = files.as_slice() else { panic!("{files:?} are kept of one blob") };
    let good = std::fs::read(file).unwrap();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let changed = [
        flipped(0),
        flipped(FILE_HEADER_BYTES / 2),
        flipped(FILE_HEADER_BYTES),
        flipped(FILE_HEADER_BYTES + INFO_HEADER_BYTES),
        flipped(good.len() - 1),
        good[..good.len() / 2].to_vec(),
        good[..FILE_HEADER_BYTES / 2].to_vec(),
        [&good[..], b"more"].concat(),
        vec![0xff; good.len()],
        Vec::new(),
        // Of another table of contents, by its own word: the right one gets a file of its own, so this comes last.
        flipped(8),
    ];
    for (number, bytes) in changed.into_iter().enumerate() {
        std::fs::write(file, bytes).unwrap();
        assert!(mount() > 0, "change {number} is not trusted");
        assert_eq!(mount(), 0, "it is kept again after change {number}");
    }
}
