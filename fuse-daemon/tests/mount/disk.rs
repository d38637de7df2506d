//! Disks that are full, and bootstraps that cannot be read.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuse_daemon::prefetch::PrefetchConfig;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rafs::build::BuildOptions;
use test_support::{noise, tar_of};

use crate::faults::{EIO, Watched};
use crate::image::{Node, Settings, TestImage};
use crate::{can_mount, eventually};

/// Held by a test for as long as it has a disk that is full: what is logged of one does not say which one it is.
static DISKS: Mutex<()> = Mutex::new(());

fn one_disk() -> MutexGuard<'static, ()> {
    DISKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A small file system of its own, gone after the test.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(bytes: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        Self(dir)
    }

    fn grow(&self, bytes: usize) {
        let size = format!("size={bytes}");
        let none = None::<&str>;
        mount(none, self.0.path(), none, MsFlags::MS_REMOUNT, Some(size.as_str())).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn on_a_full_disk_images_are_read_without_being_cached_and_cached_when_there_is_room() {
    if !can_mount() {
        return;
    }
    let _disks = one_disk();
    let contents: Vec<_> = (80..84).map(|seed| noise(seed, 700_000)).collect();
    let names = ["a", "b", "c", "d"];
    let files: Vec<_> = names.into_iter().zip(&contents).collect();
    let image =
        TestImage::build(&tar_of(&files), &BuildOptions { chunk_size: 65_536, ..BuildOptions::default() });
    let disk = Disk::new(1 << 20);
    let node = Node::new(disk.0.path(), &Settings::default());
    let log = crate::log::lines();
    // Mounted anew each time, so that the kernel has none of it.
    let reads = || {
        let backend = Watched::over(&image);
        let mount = node.mount_from(&image, backend.clone());
        for (name, content) in &files {
            assert!(mount.read(name).unwrap() == **content, "{name}");
        }
        backend.reads()
    };
    assert!(reads() > 0 && reads() > 0);
    assert_eq!(log.count(|line| line.contains("the cache's disk is full")), 1);
    disk.grow(64 << 20);
    reads();
    assert_eq!(log.count(|line| line.contains("disk has room again")), 1);
    assert_eq!(reads(), 0);
}

#[test]
fn what_a_full_disk_has_no_room_for_is_fetched_ahead_once_and_again_when_there_is_room() {
    if !can_mount() {
        return;
    }
    const CHUNKS: usize = 80;
    let _disks = one_disk();
    let content = noise(85, CHUNKS * 65_536);
    let tar = tar_of(&[("first", &content)]);
    let options = BuildOptions { chunk_size: 65_536, ..BuildOptions::default() };
    let image = TestImage::build_layers_with(&[&tar], &options, &["/first"]);
    // A fifth of it fits.
    let disk = Disk::new(1 << 20);
    let complete_after = Some(Duration::from_millis(1));
    let prefetch = PrefetchConfig { table: true, programs: true, complete_after };
    // Each chunk is a request.
    let node = Node::new(disk.0.path(), &Settings { prefetch, request_bytes: 1, ..Settings::default() });
    let log = crate::log::lines();
    let backend = Watched::over(&image);
    let mount = node.mount_from(&image, backend.clone());
    let waits = |line: &str| line.contains("the cache does not take all of the image now");
    eventually("it waits for room", || backend.reads() > CHUNKS || log.count(waits) > 0);
    assert!(backend.reads() < CHUNKS, "{} requests for what did not fit", backend.reads());
    assert!(mount.mounted.completeness().ready < CHUNKS as u64 / 2);
    disk.grow(64 << 20);
    // A reader is served, and with that it shows.
    let mut last = [0; 4096];
    let file = std::fs::File::open(mount.path("first")).unwrap();
    file.read_exact_at(&mut last, content.len() as u64 - 4096).unwrap();
    eventually("all of it is there", || mount.mounted.completeness().ready == CHUNKS as u64);
}

/// Shortens a file without changing anything else about it.
fn shorten(path: &Path) {
    std::fs::File::options().write(true).open(path).unwrap().set_len(4096).unwrap();
}

#[test]
fn a_bootstrap_that_cannot_be_read_costs_that_image_alone() {
    if !can_mount() {
        return;
    }
    let files: Vec<_> = (0..2000).map(|number| (format!("d/{number:04}"), noise(number, 100))).collect();
    let images = [(); 3].map(|()| TestImage::build(&tar_of(&files), &BuildOptions::default()));
    let (_cache, node) = Node::fresh();
    let mounts = [0, 1, 2].map(|image: usize| node.mount(&images[image]));
    let log = crate::log::lines();
    shorten(&images[1].bootstrap());
    let listed =
        std::fs::read_dir(mounts[1].path("d")).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    assert_eq!(listed.unwrap_err().raw_os_error(), EIO);
    // Never "there is no such file", which the kernel would remember for ever.
    assert_eq!(mounts[1].read("d/0007").unwrap_err().raw_os_error(), EIO);
    let path = images[1].bootstrap();
    log.find(|line| line.contains("cannot be read any longer") && line.contains(path.to_str().unwrap()));
    for mount in [&mounts[0], &mounts[2]] {
        for (name, content) in &files {
            assert!(mount.read(name).unwrap() == *content, "{name}");
        }
    }
}
