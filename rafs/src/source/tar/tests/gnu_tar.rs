//! Archives made by GNU tar from a directory are what reading that directory gives.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, mknodat, setxattr, utimensat,
};

use super::{Files, read_all, read_content};
use crate::source::directory::DirectorySource;
use crate::source::{EntryKind, Source};

/// Names that every format can hold.
fn make_plain_tree(root: &Path) {
    fs::create_dir_all(root.join("dir/empty")).unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("dir/small"), b"content").unwrap();
    fs::write(root.join("dir/block"), [1; 512]).unwrap();
    fs::write(root.join("dir/large"), (0..200_000_u32).map(|index| index as u8).collect::<Vec<_>>()).unwrap();
    fs::set_permissions(root.join("dir/small"), fs::Permissions::from_mode(0o6751)).unwrap();
    fs::hard_link(root.join("dir/small"), root.join("dir/z-link")).unwrap();
    symlink("../some/target", root.join("link")).unwrap();
    set_mtime(&root.join("empty"), 0, 0);
    set_mtime(&root.join("link"), 1_000_000_000, 0);
}

/// Names and metadata that need extensions.
fn make_extended_tree(root: &Path) {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let deep = root.join("d".repeat(200)).join("e".repeat(255));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join(OsStr::from_bytes(b"\xff\xfe latin \xe4")), b"x").unwrap();
    fs::hard_link(deep.join(OsStr::from_bytes(b"\xff\xfe latin \xe4")), deep.join("z-second name")).unwrap();
    symlink("t/".repeat(1000), root.join("long-link")).unwrap();
    fs::hard_link(root.join("long-link"), root.join("long-link-2")).unwrap();
    mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
    set_mtime(&deep, -1_000, 0);
}

/// What only PAX can hold.
fn make_pax_tree(root: &Path) {
    fs::write(root.join("times"), b"").unwrap();
    fs::write(root.join("old"), b"").unwrap();
    fs::write(root.join("attributes"), b"x").unwrap();
    set_mtime(&root.join("times"), 1_700_000_000, 123_456_789);
    set_mtime(&root.join("old"), -2, 250_000_000);
    setxattr(root.join("attributes"), "user.binary", b"\0\xff\n=", XattrFlags::empty()).unwrap();
    setxattr(root.join("attributes"), "user.empty", b"", XattrFlags::empty()).unwrap();
}

fn make_sparse_tree(root: &Path) {
    let file = File::create(root.join("two-segments")).unwrap();
    file.write_all_at(b"start", 0).unwrap();
    file.write_all_at(b"middle", 3_000_000).unwrap();
    file.set_len(5_000_001).unwrap();
    File::create(root.join("one-hole")).unwrap().set_len(1_000_000).unwrap();
    let many = File::create(root.join("many-segments")).unwrap();
    (0..100).for_each(|index| many.write_all_at(b"x", index * 20_000).unwrap());
    fs::write(root.join("dense"), [7; 10_000]).unwrap();
}

fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn read_tar(root: &Path, options: &[&str]) -> Files {
    let mut command = Command::new("tar");
    let command = command.args(["--create", "--file=-", "--sort=name", "--numeric-owner"]).args(options);
    let output = command.arg("--directory").arg(root).arg(".").output().expect("GNU tar is installed");
    assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stderr));
    let mut files = read_all(output.stdout.as_slice()).unwrap();
    for (entry, _) in &mut files {
        entry.path = normalised(&entry.path);
        if let EntryKind::HardLink(target) = &mut entry.kind {
            *target = normalised(target);
        }
    }
    files
}

/// `./a/` as `a`.
fn normalised(path: &[u8]) -> Vec<u8> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    path.strip_prefix(b"./").unwrap_or(path).to_vec()
}

/// A tar's hard links repeat their target's attributes, where the format has them; a directory's do not.
fn without_link_xattrs(mut files: Files) -> Files {
    for (entry, _) in &mut files {
        if matches!(entry.kind, EntryKind::HardLink(_)) {
            entry.metadata.xattrs.clear();
        }
    }
    files
}

fn read_directory(root: &Path, nanoseconds: bool) -> Files {
    let mut source = DirectorySource::open(root).unwrap();
    let mut files = Vec::new();
    while let Some(mut entry) = source.next_entry().unwrap() {
        if !nanoseconds {
            entry.metadata.mtime.nanoseconds = 0;
        }
        files.push((entry, read_content(&mut source).unwrap()));
    }
    files
}

fn assert_equal(tar: Files, directory: Files, what: &str) {
    let tar = without_link_xattrs(tar);
    assert_eq!(tar.len(), directory.len(), "{what}");
    for (tar, directory) in tar.iter().zip(&directory) {
        assert_eq!(tar.0, directory.0, "{what}");
        assert!(tar.1 == directory.1, "{what}: content of {:?}", String::from_utf8_lossy(&tar.0.path));
    }
}

#[test]
fn every_format_gives_what_the_directory_gives() {
    let root = tempfile::tempdir().unwrap();
    make_plain_tree(root.path());
    for format in ["v7", "oldgnu", "ustar", "gnu"] {
        let format = format!("--format={format}");
        assert_equal(read_tar(root.path(), &[&format]), read_directory(root.path(), false), &format);
    }
    assert_equal(read_tar(root.path(), &["--format=pax"]), read_directory(root.path(), true), "pax");
}

#[test]
fn long_and_strange_names_survive_in_gnu_and_pax_formats() {
    let root = tempfile::tempdir().unwrap();
    make_extended_tree(root.path());
    for format in ["oldgnu", "gnu"] {
        let format = format!("--format={format}");
        assert_equal(read_tar(root.path(), &[&format]), read_directory(root.path(), false), &format);
    }
    assert_equal(read_tar(root.path(), &["--format=pax"]), read_directory(root.path(), true), "pax");
}

#[test]
fn times_and_attributes_survive_in_pax_format() {
    let root = tempfile::tempdir().unwrap();
    make_pax_tree(root.path());
    let options = ["--format=pax", "--xattrs", "--xattrs-include=*"];
    assert_equal(read_tar(root.path(), &options), read_directory(root.path(), true), "pax");
}

#[test]
fn every_sparse_format_gives_the_files_with_their_holes() {
    let root = tempfile::tempdir().unwrap();
    make_sparse_tree(root.path());
    for format in ["oldgnu", "gnu"] {
        let format = format!("--format={format}");
        let archive = read_tar(root.path(), &["--sparse", &format]);
        assert_equal(archive, read_directory(root.path(), false), &format);
    }
    for version in ["0.0", "0.1", "1.0"] {
        let version = format!("--sparse-version={version}");
        let archive = read_tar(root.path(), &["--sparse", "--format=pax", &version]);
        assert_equal(archive, read_directory(root.path(), true), &version);
    }
}
