//! The mount as the kernel sees it.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use fuse_daemon::Rights;
use fuse_daemon::mounts::Image;
use fuse_daemon::worker::DirectoryBackend;
use rafs::build::BuildOptions;
use test_support::{noise, tar_of};

use crate::image::{Node, Settings, TestImage};
use crate::{can_mount, eventually};

#[test]
fn the_mount_is_read_only_and_says_whose_it_is() {
    if !can_mount() {
        return;
    }
    let image = TestImage::build(&tar_of(&[("file", b"content")]), &BuildOptions::default());
    let (_cache, node) = Node::fresh();
    let mount = node.mount(&image);
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let line = mounts.lines().find(|line| line.contains(mount.mountpoint.to_str().unwrap())).unwrap();
    assert!(line.starts_with("nydus-cluster:test ") && line.contains(" fuse.nydus-cluster ro,"), "{line}");
    assert!(!line.contains("nodev") && !line.contains("nosuid"), "{line}");
    let device = std::fs::metadata(&mount.mountpoint).unwrap().dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let read_ahead =
        std::fs::read_to_string(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb")).unwrap();
    assert_eq!(read_ahead.trim(), "1024");
    let refused = std::fs::write(mount.path("new"), b"").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let refused = std::fs::File::options().write(true).open(mount.path("file")).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn attributes_that_no_file_has_are_not_asked_for() {
    if !can_mount() {
        return;
    }
    let image = TestImage::build(&tar_of(&[("file", b"content")]), &BuildOptions::default());
    let (_cache, node) = Node::fresh();
    let mount = node.mount(&image);
    // At first as of a file that happens to have none; once all were looked at, as of a file system without any.
    eventually("it is known that there are none", || match xattr::get(mount.path("file"), "user.any") {
        Ok(None) => false,
        Ok(Some(value)) => panic!("{value:?}"),
        Err(error) => error.raw_os_error() == Some(nix::libc::EOPNOTSUPP),
    });
    assert_eq!(xattr::list(mount.path("file")).unwrap().count(), 0);
}

#[test]
fn each_file_says_that_it_has_none_if_that_is_wanted() {
    if !can_mount() {
        return;
    }
    let image = TestImage::build(&tar_of(&[("file", b"content")]), &BuildOptions::default());
    let cache = tempfile::tempdir().unwrap();
    let node = Node::new(cache.path(), &Settings { exact_xattrs: true, ..Settings::default() });
    let mount = node.mount(&image);
    for attribute in ["security.capability", "trusted.overlay.metacopy", "user.any"] {
        for _ in 0..2 {
            // ENODATA, and no EOPNOTSUPP, at any time.
            assert_eq!(xattr::get(mount.path("file"), attribute).unwrap(), None, "{attribute}");
        }
    }
}

#[test]
fn reads_of_any_offset_and_size_are_right() {
    if !can_mount() {
        return;
    }
    let content = noise(3, 3_333_333);
    let options = BuildOptions { chunk_size: 65_536, ..BuildOptions::default() };
    let image = TestImage::build(&tar_of(&[("file", &content)]), &options);
    let cache = tempfile::tempdir().unwrap();
    let node = Node::new(cache.path(), &Settings { request_bytes: 100_000, ..Settings::default() });
    let mount = node.mount(&image);
    let mut file = std::fs::File::open(mount.path("file")).unwrap();
    let mut place = 17_usize;
    for size in [1, 4095, 65_536, 65_537, 300_000, 1 << 20, 0] {
        place = (place * 7919 + size) % content.len();
        file.seek(SeekFrom::Start(place as u64)).unwrap();
        let mut bytes = Vec::new();
        (&mut file).take(size as u64).read_to_end(&mut bytes).unwrap();
        assert!(bytes == content[place..(place + size).min(content.len())], "{size} bytes at {place}");
    }
    file.seek(SeekFrom::End(10)).unwrap();
    assert_eq!(file.read(&mut [0; 10]).unwrap(), 0);
}

#[test]
fn a_busy_mount_is_detached_and_serves_its_last_user() {
    if !can_mount() {
        return;
    }
    let content = noise(4, 3_000_000);
    let image = TestImage::build(&tar_of(&[("file", &content)]), &BuildOptions::default());
    let (_cache, node) = Node::fresh();
    let mount = node.mount(&image);
    let mut file = std::fs::File::open(mount.path("file")).unwrap();
    assert!(!mount.mounted.try_unmount().unwrap());
    assert!(!mount.mounted.unmount(Duration::from_millis(100)).unwrap());
    assert!(!mount.mounted.is_mounted());
    let ids: Vec<_> = mount.mounted.blobs().to_vec();
    assert_eq!(node.engine.cache().remove(&ids).unwrap().in_use, ids);
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert!(bytes == content);
    drop(file);
    eventually("the blob is free", || !node.engine.cache().remove(&ids).unwrap().removed.is_empty());
}

#[test]
fn an_unmounted_image_leaves_its_blobs_free_at_once() {
    if !can_mount() {
        return;
    }
    let image = TestImage::build(&tar_of(&[("file", &noise(5, 500_000))]), &BuildOptions::default());
    let (_cache, node) = Node::fresh();
    let mount = node.mount(&image);
    mount.read("file").unwrap();
    assert!(node.usage(&image) >= 500_000);
    assert!(mount.mounted.unmount(crate::SOON).unwrap());
    let ids = mount.mounted.blobs();
    assert_eq!(node.engine.cache().remove(ids).unwrap().removed, ids);
    assert_eq!(node.usage(&image), 0);
}

/// Where [`serves_until_it_is_killed`] finds its image, and mounts it.
const DIR: &str = "FUSE_DAEMON_TEST_DIR";

/// Not a test: the process that the next one kills.
#[test]
#[ignore = "runs as a process of its own"]
fn serves_until_it_is_killed() {
    let dir = std::env::var_os(DIR).expect("started by a test");
    let dir = Path::new(&dir);
    let node = Node::new(&dir.join("cache"), &Settings::default());
    let image = Image {
        id: "killed",
        name: "test",
        bootstrap: &dir.join("image.boot"),
        mountpoint: &dir.join("mnt"),
        rights: Rights::CONTAINER,
        backends: vec![std::sync::Arc::new(DirectoryBackend::new(dir.join("blobs"))) as std::sync::Arc<_>],
    };
    let _mounted = node.engine.mount(&image).unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn after_a_kill_the_dead_mount_is_cleared_away_and_the_cache_is_used() {
    if !can_mount() {
        return;
    }
    let content = noise(6, 3_000_000);
    let image = TestImage::build(&tar_of(&[("file", &content)]), &BuildOptions::default());
    let dir = image.dir.path();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "kernel::serves_until_it_is_killed"])
        .env(DIR, dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the other process serves", || {
        std::fs::read(dir.join("mnt/file")).is_ok_and(|read| read == content)
    });
    process.kill().unwrap();
    process.wait().unwrap();
    let dead = nix::sys::statfs::statfs(&dir.join("mnt")).unwrap_err();
    assert_eq!(dead, nix::errno::Errno::ENOTCONN);
    // What it had fetched is all that there is now.
    std::fs::remove_dir_all(image.blobs()).unwrap();
    let node = Node::new(&dir.join("cache"), &Settings::default());
    let mounted = node.engine.mount(&Image {
        id: "successor",
        name: "test",
        bootstrap: &image.bootstrap(),
        mountpoint: &dir.join("mnt"),
        rights: Rights::CONTAINER,
        backends: vec![image.backend()],
    });
    let mounted = mounted.unwrap();
    assert!(std::fs::read(dir.join("mnt/file")).unwrap() == content);
    assert!(mounted.unmount(crate::SOON).unwrap());
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(dir.to_str().unwrap()), "the dead mount lies below no more");
}
