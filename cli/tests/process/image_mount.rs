//! `image mount`: what it lets others do, and what it leaves behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::sys::statvfs::{FsFlags, statvfs};
use test_support::noise;

use crate::node::{Node, Process};
use crate::registry::Serving;
use crate::{can_mount, eventually};

#[test]
fn a_mount_is_for_looking_unless_asked_for_and_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let content = noise(1, 100_000);
    let image = node.image("i", &[("f", &content)]);
    let temporary = node.path("tmp");
    fs::create_dir(&temporary).unwrap();
    for asked in [false, true] {
        let place = node.path("made/on/demand");
        let mut command = node.role(&["image", "mount"]);
        command.arg(&image.bootstrap).arg(&place).arg("--blobs").arg(node.blobs()).env("TMPDIR", &temporary);
        if asked {
            command.args(["-o", "suid,dev,allow_other"]);
        }
        // Nobody reads what it says.
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        drop(reader);
        let mut process = Process::spawn(command.stdout(writer).stderr(Stdio::null()));
        eventually("it serves", || fs::read(place.join("f")).ok().filter(|read| *read == content));
        let flags = statvfs(&place).unwrap().flags();
        assert_eq!(flags.contains(FsFlags::ST_NOSUID), !asked);
        assert_eq!(flags.contains(FsFlags::ST_NODEV), !asked);
        assert!(flags.contains(FsFlags::ST_RDONLY));
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts.lines().find(|line| line.contains(place.to_str().unwrap())).unwrap();
        assert_eq!(line.contains("allow_other"), asked, "{line}");
        process.signal(Signal::SIGTERM);
        assert!(process.ended().success());
        assert!(!node.path("made").exists());
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
    }
}

#[test]
fn a_mount_that_would_hide_files_is_refused() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let image = node.image("i", &[("f", b"")]);
    let place = node.path("used");
    fs::create_dir(&place).unwrap();
    fs::write(place.join("precious"), "").unwrap();
    let mut command = node.role(&["image", "mount"]);
    let output = command.arg(&image.bootstrap).arg(&place).arg("--blobs").arg(node.blobs()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("is not empty"), "{text}");
    assert!(place.join("precious").exists());
}

#[test]
fn a_mount_that_is_complete_needs_its_blobs_no_more() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let content = noise(2, 3_000_000);
    let image = node.image("i", &[("f", &content)]);
    let (place, cache, log) = (node.path("place"), node.path("cache"), node.path("mount.log"));
    let mut command = node.role(&["image", "mount", "--complete-after", "0", "--cache"]);
    command.arg(&cache).arg(&image.bootstrap).arg(&place).arg("--blobs").arg(node.blobs());
    command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
    let mut process = Process::spawn(&mut command);
    eventually("it says that all is there", || {
        fs::read_to_string(&log).ok().filter(|said| said.contains("all of the image is cached"))
    });
    fs::remove_dir_all(node.blobs()).unwrap();
    assert!(fs::read(place.join("f")).unwrap() == content);
    process.signal(Signal::SIGTERM);
    assert!(process.ended().success());
}

/// The bootstraps that a cache's directory keeps.
fn kept(cache: &Path) -> Vec<PathBuf> {
    fs::read_dir(cache.join("bootstraps"))
        .map(|all| all.map(|entry| entry.unwrap().path().join("image.boot")).collect())
        .unwrap_or_default()
}

#[test]
fn an_image_that_its_digest_names_is_mounted_again_without_its_registry() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let content = noise(3, 3_000_000);
    let (tree, place, cache) = (node.path("tree"), node.path("place"), node.path("cache"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("f"), &content).unwrap();
    let registry = Serving::start(node.dir.path(), "elsewhere", &[]);
    let name = format!("{}/team/image", registry.address);
    let from = format!("directory:{}", tree.display());
    let convert = ["image", "convert", "--layer-cache", "", &from, &format!("{name}:v1")];
    let digest = String::from_utf8(node.role(&convert).output().unwrap().stdout).unwrap();
    let image = format!("{name}@{}", digest.trim_end());
    let mount = |image: &str| {
        let mut command = node.role(&["image", "mount", image]);
        command.arg(&place).arg("--cache").arg(&cache).stdout(Stdio::null());
        command
    };
    let read_all = |image: &str| {
        let mut process = Process::spawn(&mut mount(image));
        eventually("it serves", || fs::read(place.join("f")).ok().filter(|read| *read == content));
        process.signal(Signal::SIGTERM);
        assert!(process.ended().success());
    };
    // A tag may lead elsewhere tomorrow.
    read_all(&format!("{name}:v1"));
    assert_eq!(kept(&cache), <[PathBuf; 0]>::default());
    read_all(&image);
    drop(registry);
    read_all(&image);
    let [bootstrap] = &kept(&cache)[..] else { panic!("{:?}", kept(&cache)) };

    // One that is not as it was written is not used.
    let mut bytes = fs::read(bootstrap).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(bootstrap, bytes).unwrap();
    let output = mount(&image).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("GET manifest"), "{said}");
}
