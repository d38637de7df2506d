//! Several images on the same blobs: each reads all its files, whatever else is, was or comes to be mounted.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuse_daemon::control::BlobId;
use fuse_daemon::worker::Backend;
use rafs::blob::Chunk;
use rafs::bootstrap::Bootstrap;
use rafs::build::BuildOptions;
use test_support::{noise, tar_of};
use tokio::sync::watch;

use crate::faults::{Behaviour, EIO, Watched};
use crate::image::{FIRST_BOOT, Node, SECOND_BOOT, Settings, TestImage};
use crate::{can_mount, eventually};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// A base of four files.
fn base_layer() -> (Vec<Vec<u8>>, Vec<u8>) {
    let contents: Vec<Vec<u8>> = (50..54).map(|seed| noise(seed, 60_000)).collect();
    let files: Vec<_> = NAMES.into_iter().zip(&contents).collect();
    let tar = tar_of(&files);
    (contents, tar)
}

/// Chunks of a file are fetched one by one, so that each is asked for by who reads it.
fn one_by_one(boot: fuse_daemon::cache::BootId) -> Settings {
    Settings { request_bytes: 1, boot, ..Settings::default() }
}

#[test]
fn images_on_one_base_read_all_their_files_whatever_else_is_mounted() {
    if !can_mount() {
        return;
    }
    let (contents, base_tar) = base_layer();
    let replaced = [noise(60, 40_000), noise(61, 40_000)];
    let upper = |name: &str, content: &Vec<u8>| tar_of(&[(name, content)]);
    let options = BuildOptions::default();
    let base = TestImage::build(&base_tar, &options);
    // Each lacks the chunks of the file that it replaces.
    let one = TestImage::build_layers(&[&base_tar, &upper("b", &replaced[0])], &options);
    let two = TestImage::build_layers(&[&base_tar, &upper("c", &replaced[1])], &options);
    assert_eq!(base.blob_ids()[0], one.blob_ids()[0], "they share the base's blob");
    let expected = |image: usize, file: usize| match (image, file) {
        (1, 1) => &replaced[0],
        (2, 2) => &replaced[1],
        _ => &contents[file],
    };
    // In several orders of mounting; the second round finds chunks of an earlier boot.
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let cache = tempfile::tempdir().unwrap();
        for boot in [FIRST_BOOT, SECOND_BOOT] {
            let node = Node::new(cache.path(), &one_by_one(boot));
            let mounts = order.map(|image| (image, node.mount([&base, &one, &two][image])));
            for (file, name) in NAMES.iter().enumerate() {
                for (image, mount) in &mounts {
                    assert!(
                        mount.read(name).unwrap() == *expected(*image, file),
                        "{order:?}: {name} of image {image}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_fetch_for_files_that_were_removed_does_not_reach_the_image_that_is_pulled_again() {
    if !can_mount() {
        return;
    }
    let (contents, tar) = base_layer();
    let image = TestImage::build(&tar, &BuildOptions::default());
    let ids: Vec<BlobId> = image.blob_ids().into_iter().map(BlobId).collect();
    let cache = tempfile::tempdir().unwrap();
    let node = Node::new(cache.path(), &one_by_one(FIRST_BOOT));
    let (open, gate) = watch::channel(false);
    let slow = Watched::with(&image, Behaviour::Gated(gate));
    let mount = node.mount_from(&image, slow.clone());
    // A reader in a process of its own, which goes away in the middle.
    let mut reader = Command::new("cat").arg(mount.path("a")).stdout(Stdio::null()).spawn().unwrap();
    eventually("the fetch is under way", || slow.reads() > 0);
    reader.kill().unwrap();
    reader.wait().unwrap();
    assert!(mount.mounted.unmount(crate::SOON).unwrap(), "nobody uses it");
    assert_eq!(node.engine.cache().remove(&ids).unwrap().removed, ids);

    let again = node.mount_from(&image, slow.clone());
    let before = slow.reads();
    std::thread::scope(|scope| {
        let early = scope.spawn(|| again.read("a"));
        eventually("it is fetched for the new files", || slow.reads() > before);
        open.send_replace(true);
        assert!(early.join().unwrap().unwrap() == contents[0]);
    });
    for (name, content) in NAMES.into_iter().zip(&contents) {
        assert!(again.read(name).unwrap() == *content, "{name}");
    }
}

#[test]
fn many_images_on_one_blob_do_not_divide_the_deadline() {
    if !can_mount() {
        return;
    }
    let (contents, tar) = base_layer();
    let image = TestImage::build(&tar, &BuildOptions::default());
    let cache = tempfile::tempdir().unwrap();
    let settings = Settings { deadline: Duration::from_secs(8), ..one_by_one(FIRST_BOOT) };
    let node = Node::new(cache.path(), &settings);
    // Longer than an eighth of the deadline.
    let slow: Arc<dyn Backend> = Watched::with(&image, Behaviour::Slow(Duration::from_millis(1500)));
    let mounts = [(); 8].map(|()| node.mount_from(&image, slow.clone()));
    assert!(mounts[3].read("a").unwrap() == contents[0]);
}

#[test]
fn a_registry_that_stands_still_does_not_fail_reads_from_another() {
    if !can_mount() {
        return;
    }
    let (stuck, living) = (noise(70, 24 << 20), noise(71, 8 << 20));
    let options = BuildOptions::default();
    let stuck_image = TestImage::build(&tar_of(&[("file", &stuck)]), &options);
    let living_image = TestImage::build(&tar_of(&[("file", &living)]), &options);
    let cache = tempfile::tempdir().unwrap();
    let node =
        Node::new(cache.path(), &Settings { deadline: Duration::from_secs(10), ..one_by_one(FIRST_BOOT) });
    let stalled = Watched::stalled(&stuck_image);
    let stuck_mount = node.mount_from(&stuck_image, stalled.clone());
    let living_mount = node.mount(&living_image);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // More at once than all of the memory for stored bytes.
        for reader in 0..24 {
            let (mount, over) = (&stuck_mount, &over);
            scope.spawn(move || {
                let file = std::fs::File::open(mount.path("file")).unwrap();
                while !over.load(Ordering::Relaxed) {
                    let mut byte = [0];
                    let read = std::os::unix::fs::FileExt::read_at(&file, &mut byte, reader << 20);
                    assert_eq!(read.unwrap_err().raw_os_error(), EIO);
                }
            });
        }
        eventually("the stalled backend is asked", || stalled.reads() > 2);
        assert!(living_mount.read("file").unwrap() == living);
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn what_one_backend_delivers_corrupt_is_read_from_the_next() {
    if !can_mount() {
        return;
    }
    let (contents, tar) = base_layer();
    let image = TestImage::build(&tar, &BuildOptions::default());
    let cache = tempfile::tempdir().unwrap();
    let node = Node::new(cache.path(), &one_by_one(FIRST_BOOT));
    let corrupt = Watched::with(&image, Behaviour::Corrupts);
    let backends: Vec<Arc<dyn Backend>> = vec![corrupt.clone(), Watched::over(&image)];
    let mount = node.try_mount_from_all(&image, backends).unwrap();
    let log = crate::log::lines();
    for (name, content) in NAMES.into_iter().zip(&contents) {
        assert!(mount.read(name).unwrap() == *content, "{name}");
    }
    assert!(corrupt.reads() >= 4);
    let name = corrupt.name();
    log.find(|line| line.contains("turning to another backend") && line.contains(&name));
}

#[test]
fn work_that_ends_in_a_bug_is_done_again() {
    if !can_mount() {
        return;
    }
    let (contents, tar) = base_layer();
    let image = TestImage::build(&tar, &BuildOptions::default());
    let (_cache, node) = Node::fresh();
    let backend = Watched::with(&image, Behaviour::PanicsOnce);
    let mount = node.mount_from(&image, backend.clone());
    for (name, content) in NAMES.into_iter().zip(&contents) {
        assert!(mount.read(name).unwrap() == *content, "{name}");
    }
}

#[test]
fn who_reads_on_has_several_requests_under_way() {
    if !can_mount() {
        return;
    }
    let content = noise(90, 8 << 20);
    let image = TestImage::build(&tar_of(&[("file", &content)]), &BuildOptions::default());
    let cache = tempfile::tempdir().unwrap();
    let node = Node::new(cache.path(), &Settings { request_bytes: 512 << 10, ..Settings::default() });
    let backend = Watched::with(&image, Behaviour::Slow(Duration::from_millis(100)));
    let mount = node.mount_from(&image, backend.clone());
    assert!(mount.read("file").unwrap() == content);
    assert!(backend.most_at_once() >= 3, "{} requests at once", backend.most_at_once());
}

#[test]
fn mounts_that_need_chunk_information_read_it_once_and_wait_for_nobody_else() {
    if !can_mount() {
        return;
    }
    let files = crate::image::small_files();
    let options = BuildOptions { batch_size: Some(65_536), ..BuildOptions::default() };
    let image = TestImage::build(&tar_of(&files), &options);
    let (_cache, node) = Node::fresh();
    let (open, gate) = watch::channel(false);
    let slow = Watched::with(&image, Behaviour::Gated(gate));
    std::thread::scope(|scope| {
        let mounts: Vec<_> = (0..4)
            .map(|_| {
                let (node, image, slow) = (&node, &image, slow.clone());
                scope.spawn(move || node.mount_from(image, slow))
            })
            .collect();
        eventually("chunk information is asked for", || slow.reads() > 0);
        // Another image is mounted and read meanwhile.
        let (contents, tar) = base_layer();
        let other = TestImage::build(&tar, &BuildOptions::default());
        assert!(node.mount(&other).read("a").unwrap() == contents[0]);
        open.send_replace(true);
        let mounts: Vec<_> = mounts.into_iter().map(|mount| mount.join().unwrap()).collect();
        for (name, content) in &files {
            assert!(mounts[3].read(name).unwrap() == *content);
        }
    });
}

/// How a hostile image describes a blob.
#[derive(Clone, Copy, Debug)]
enum Lie {
    /// Each of the first two chunks is given out for the other.
    Exchanged,
    /// The stored bytes are somewhere else.
    StoredElsewhere,
}

/// An image of the same blob that lies about it.
fn forged(image: &TestImage, lie: Lie) -> TestImage {
    let mut forged = Bootstrap::open(&image.bootstrap()).unwrap().to_image().unwrap();
    let chunks = &mut forged.blobs[0].chunks;
    match lie {
        Lie::Exchanged => {
            let (first, second) = (chunks[0].clone(), chunks[1].clone());
            let (at_first, at_second) = (first.uncompressed_offset, second.uncompressed_offset);
            chunks[0] = Chunk { uncompressed_offset: at_first, ..second };
            chunks[1] = Chunk { uncompressed_offset: at_second, ..first };
        }
        Lie::StoredElsewhere => {
            let at = chunks[3].compressed_offset;
            chunks.iter_mut().for_each(|chunk| chunk.compressed_offset = at);
        }
    }
    TestImage::of(&forged, &image.blobs())
}

#[test]
fn an_image_that_lies_about_a_blob_reaches_no_other_that_names_it_and_none_is_refused() {
    if !can_mount() {
        return;
    }
    let (contents, tar) = base_layer();
    let image = TestImage::build(&tar, &BuildOptions::default());
    let upper = TestImage::build_layers(&[&tar, &tar_of(&[("d", b"new")])], &BuildOptions::default());
    for lie in [Lie::Exchanged, Lie::StoredElsewhere] {
        let forged = forged(&image, lie);
        // The hostile one first, in between, and last; and gone before the others come.
        for place in 0..4 {
            let cache = tempfile::tempdir().unwrap();
            let node = Node::new(cache.path(), &one_by_one(FIRST_BOOT));
            let mut mounts = Vec::new();
            let mut hostile = None;
            for step in 0..4 {
                if step == place {
                    let mount = node.mount(&forged);
                    // Its own digests hold for it as well.
                    let own = if matches!(lie, Lie::Exchanged) { Some(&contents[1]) } else { None };
                    assert_eq!(mount.read("a").ok().as_ref(), own, "{lie:?}");
                    hostile = (place < 3).then_some(mount);
                }
                match step {
                    0 => mounts.push(node.mount(&image)),
                    1 => mounts.push(node.mount(&upper)),
                    2 => mounts.push(node.mount(&image)),
                    _ => {}
                }
                if step < 3 {
                    let mount = mounts.last().unwrap();
                    let (name, content) = (NAMES[step], &contents[step]);
                    assert!(
                        mount.read(name).unwrap() == *content,
                        "{lie:?}, hostile at {place}: {name} at {step}"
                    );
                }
            }
            drop(hostile);
            for mount in &mounts {
                for (name, content) in NAMES.into_iter().zip(&contents).take(3) {
                    assert!(
                        mount.read(name).unwrap() == *content,
                        "{lie:?}, hostile at {place}: {name} in the end"
                    );
                }
            }
        }
    }
}
