//! What the mount shows is what went into the image.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rafs::build::BuildOptions;
use rafs::digest::{Digest, DigestAlgorithm};
use test_support::{noise, tar_of};

use crate::can_mount;
use crate::image::{Node, TestImage};

/// All that `stat`, `readlink`, `getxattr` and `read` tell of a path.
#[derive(Debug, Eq, PartialEq)]
struct Facts {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    size: u64,
    device: u64,
    links: u64,
    target: Option<PathBuf>,
    xattrs: BTreeMap<std::ffi::OsString, Vec<u8>>,
    content: Option<Digest>,
    /// The first path, in order, with the same inode.
    same_as: PathBuf,
}

fn facts(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut all = BTreeMap::new();
    let mut first = BTreeMap::new();
    let mut paths = vec![root.to_owned()];
    while let Some(path) = paths.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        if kind.is_dir() {
            let mut children: Vec<_> =
                std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            children.sort_by(|one, other| other.cmp(one));
            paths.extend(children);
        }
        let relative = path.strip_prefix(root).unwrap().to_owned();
        let names = xattr::list(&path).unwrap();
        let facts = Facts {
            kind: match kind {
                kind if kind.is_dir() => "directory",
                kind if kind.is_file() => "file",
                kind if kind.is_symlink() => "symlink",
                kind if kind.is_fifo() => "fifo",
                kind if kind.is_char_device() => "character device",
                kind if kind.is_block_device() => "block device",
                _ => "other",
            },
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            // A directory's size is the file system's own affair.
            size: if kind.is_dir() { 0 } else { metadata.size() },
            device: metadata.rdev(),
            links: metadata.nlink(),
            target: kind.is_symlink().then(|| std::fs::read_link(&path).unwrap()),
            xattrs: names.map(|name| (name.clone(), xattr::get(&path, &name).unwrap().unwrap())).collect(),
            content: kind.is_file().then(|| DigestAlgorithm::Blake3.digest(&std::fs::read(&path).unwrap())),
            same_as: first.entry(metadata.ino()).or_insert_with(|| relative.clone()).clone(),
        };
        all.insert(relative, facts);
    }
    all
}

/// A directory with a file of every kind.
fn source() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
        set -e
        mkdir -p usr/bin var/empty deep/$(printf 'd%.0s' $(seq 200))/x
        printf '' > empty; printf x > one; head -c 4096 /dev/urandom > page; head -c 4097 /dev/urandom > page+1
        head -c 3500000 /dev/urandom > usr/large; yes text | head -c 5000000 > usr/compressible
        truncate -s 3M sparse; printf end >> sparse
        ln usr/large usr/large-again; ln -s usr/large link; ln -s /nowhere dangling
        mknod null c 1 3; mknod disk b 259 70000; mkfifo fifo
        printf '#!/bin/sh\n' > usr/bin/su; chmod 4755 usr/bin/su; chmod 1777 var; chmod 000 page
        chown 1000:100 one; chown -h 12:34 link; chown 4000000000:4000000001 empty
        touch -h -d '1999-12-31 23:59:59.123456789' one; touch -h -d '1950-01-01 00:00:00.5' empty
        touch "$(printf 'n%.0s' $(seq 255))" "$(printf 'not \377 utf-8')"
    "#;
    let made = Command::new("sh").arg("-c").arg(script).current_dir(&dir).status().unwrap();
    assert!(made.success());
    xattr::set(dir.path().join("one"), "user.one", b"1").unwrap();
    xattr::set(dir.path().join("one"), "user.empty", b"").unwrap();
    xattr::set(dir.path().join("usr"), "trusted.dir", &[7; 900]).unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(dir.path().join("usr/bin/su"), "security.capability", &capability).unwrap();
    dir
}

fn pack(dir: &Path) -> Vec<u8> {
    let packed = Command::new("tar")
        .args(["--format=pax", "--xattrs", "--xattrs-include=*", "--sort=name", "-c", "."])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    packed.stdout
}

fn assert_same(expected: &BTreeMap<PathBuf, Facts>, found: &BTreeMap<PathBuf, Facts>) {
    let names = |facts: &BTreeMap<PathBuf, Facts>| facts.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(expected), names(found));
    for (path, facts) in expected {
        assert_eq!(facts, &found[path], "{}", path.display());
    }
}

#[test]
fn the_mount_equals_the_tree_that_was_packed() {
    if !can_mount() {
        return;
    }
    let source = source();
    let tar = pack(source.path());
    let expected = facts(source.path());
    let (_cache, node) = Node::fresh();
    for chunk_size in [4096, 65_536, 1 << 20] {
        let image = TestImage::build(&tar, &BuildOptions { chunk_size, ..BuildOptions::default() });
        let mount = node.mount(&image);
        assert_same(&expected, &facts(&mount.mountpoint));
    }
}

#[test]
fn layers_show_as_one_tree() {
    if !can_mount() {
        return;
    }
    let (old, new) = (noise(1, 100_000), noise(2, 100_000));
    let lower = tar_of(&[("kept", &old), ("replaced", &old), ("removed", &old)]);
    let upper = tar_of(&[("replaced", &new[..]), (".wh.removed", b""), ("added", &old)]);
    let image = TestImage::build_layers(&[&lower, &upper], &BuildOptions::default());
    let (_cache, node) = Node::fresh();
    let mount = node.mount(&image);
    let mut names: Vec<_> =
        std::fs::read_dir(&mount.mountpoint).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["added", "kept", "replaced"]);
    assert_eq!((mount.read("kept").unwrap(), mount.read("added").unwrap()), (old.clone(), old));
    assert_eq!(mount.read("replaced").unwrap(), new);
}

#[test]
fn a_large_directory_lists_and_resolves_completely() {
    if !can_mount() {
        return;
    }
    let names: Vec<String> = (0..20_000).map(|number| format!("directory/file-{number:05}")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), b"".as_slice())).collect();
    let image = TestImage::build(&tar_of(&files), &BuildOptions::default());
    let (_cache, node) = Node::fresh();
    let mount = node.mount(&image);
    for _ in 0..2 {
        let listed = std::fs::read_dir(mount.path("directory")).unwrap();
        let mut found: Vec<String> = listed
            .map(|entry| format!("directory/{}", entry.unwrap().file_name().into_string().unwrap()))
            .collect();
        found.sort();
        assert!(found == names, "{} entries", found.len());
    }
    assert!(mount.path("directory/file-19999").exists());
    assert!(!mount.path("directory/file-20000").exists());
}

#[test]
fn a_batched_image_reads_as_well() {
    if !can_mount() {
        return;
    }
    let small: Vec<(String, Vec<u8>)> =
        (0..200).map(|seed| (format!("small-{seed}"), noise(seed, 100 + seed as usize * 7))).collect();
    let large = noise(1000, 2_500_000);
    let mut files: Vec<(&str, &[u8])> =
        small.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    files.push(("large", &large));
    let options = BuildOptions { batch_size: Some(65_536), ..BuildOptions::default() };
    let image = TestImage::build(&tar_of(&files), &options);
    let (_cache, node) = Node::fresh();
    let mount = node.mount(&image);
    for (name, content) in &files {
        assert!(mount.read(name).unwrap() == *content, "{name}");
    }
}
