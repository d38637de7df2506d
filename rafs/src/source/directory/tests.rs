use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, Timespec, Timestamps, XattrFlags, mkdirat, mknodat, setxattr, utimensat};
use tempfile::TempDir;

use super::*;

fn read_content(source: &mut DirectorySource) -> Result<Vec<u8>, SourceError> {
    let mut content = Vec::new();
    let mut buffer = [0; 1000];
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(content),
            count => content.extend_from_slice(&buffer[..count]),
        }
    }
}

fn read_all(root: &Path) -> Vec<(Entry, Vec<u8>)> {
    let mut source = DirectorySource::open(root).unwrap();
    let mut files = Vec::new();
    while let Some(entry) = source.next_entry().unwrap() {
        let content = read_content(&mut source).unwrap();
        files.push((entry, content));
    }
    assert!(source.next_entry().unwrap().is_none());
    files
}

fn paths(root: &Path) -> Vec<String> {
    read_all(root).iter().map(|(entry, _)| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

fn find(root: &Path, path: &[u8]) -> Entry {
    read_all(root).into_iter().find(|(entry, _)| entry.path == path).expect("the entry is there").0
}

/// Steps to the entry of this path.
fn step_to(source: &mut DirectorySource, path: &[u8]) {
    while source.next_entry().unwrap().expect("the entry is there").path != path {}
}

fn changed(error: &SourceError) -> bool {
    matches!(error, SourceError::Directory(DirectoryError::Changed { .. }))
}

#[test]
fn entries_come_sorted_by_name_with_directories_before_their_content() {
    let root = TempDir::new().unwrap();
    fs::create_dir_all(root.path().join("b/y/z")).unwrap();
    fs::create_dir(root.path().join("b.d")).unwrap();
    for name in ["a", "c", "b/x", "b/z", "b.d/f", "B", "ä"] {
        fs::write(root.path().join(name), name).unwrap();
    }
    let expected = [".", "B", "a", "b", "b/x", "b/y", "b/y/z", "b/z", "b.d", "b.d/f", "c", "ä"];
    assert_eq!(paths(root.path()), expected);
}

#[test]
fn content_is_read_whole_and_holes_are_zeros() {
    let root = TempDir::new().unwrap();
    let file = File::create(root.path().join("sparse")).unwrap();
    file.write_all_at(b"data", 100_000).unwrap();
    file.set_len(200_000).unwrap();
    fs::write(root.path().join("full"), [7; 5000]).unwrap();
    fs::write(root.path().join("empty"), b"").unwrap();
    let files = read_all(root.path());
    assert_eq!(files[1], (find(root.path(), b"empty"), Vec::new()));
    assert_eq!(files[2].0.kind, EntryKind::Regular { size: 5000 });
    assert_eq!(files[2].1, [7; 5000]);
    assert_eq!(files[3].0.kind, EntryKind::Regular { size: 200_000 });
    assert!(files[3].1 == fs::read(root.path().join("sparse")).unwrap());
}

#[test]
fn content_that_is_not_read_is_skipped() {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join("a"), [1; 5000]).unwrap();
    fs::write(root.path().join("b"), b"second").unwrap();
    let mut source = DirectorySource::open(root.path()).unwrap();
    step_to(&mut source, b"a");
    source.read(&mut [0; 10]).unwrap();
    step_to(&mut source, b"b");
    assert_eq!(read_content(&mut source).unwrap(), b"second");
}

#[test]
fn owner_mode_and_times_are_those_of_the_file() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("f");
    fs::write(&path, b"x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).unwrap();
    let time = Timespec { tv_sec: -5, tv_nsec: 123_456_789 };
    utimensat(CWD, &path, &Timestamps { last_access: time, last_modification: time }, AtFlags::empty())
        .unwrap();
    let metadata = find(root.path(), b"f").metadata;
    let expected = fs::metadata(&path).unwrap();
    assert_eq!(metadata.permissions, 0o4751);
    assert_eq!((metadata.uid, metadata.gid), (expected.uid(), expected.gid()));
    assert_eq!(metadata.mtime, Time { seconds: -5, nanoseconds: 123_456_789 });
}

#[test]
fn every_type_of_file_is_told_apart() {
    let root = TempDir::new().unwrap();
    let at = |name: &str| root.path().join(name);
    symlink("no/such/../target", at("link")).unwrap();
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
    let _listener = UnixListener::bind(at("socket")).unwrap();
    assert_eq!(find(root.path(), b"link").kind, EntryKind::Symlink((*b"no/such/../target").into()));
    assert_eq!(find(root.path(), b"fifo").kind, EntryKind::Fifo);
    assert_eq!(find(root.path(), b"socket").kind, EntryKind::Socket);
}

#[test]
fn devices_have_their_numbers() {
    // Everyone may look at these, though only root may make them.
    let mut source = DirectorySource::open("/dev").unwrap();
    let null = loop {
        let entry = source.next_entry().unwrap().expect("/dev/null is there");
        if entry.path == b"null" {
            break entry;
        }
    };
    assert_eq!(null.kind, EntryKind::CharDevice(DeviceNumber { major: 1, minor: 3 }));
}

#[test]
fn later_names_of_a_file_are_hard_links_to_its_first() {
    let root = TempDir::new().unwrap();
    let at = |name: &str| root.path().join(name);
    fs::create_dir(at("d")).unwrap();
    fs::write(at("d/first"), b"content").unwrap();
    fs::hard_link(at("d/first"), at("d/second")).unwrap();
    fs::hard_link(at("d/first"), at("third")).unwrap();
    symlink("target", at("l1")).unwrap();
    fs::hard_link(at("l1"), at("l2")).unwrap();
    let files = read_all(root.path());
    assert_eq!(find(root.path(), b"d/first").kind, EntryKind::Regular { size: 7 });
    assert_eq!(find(root.path(), b"d/second").kind, EntryKind::HardLink(b"d/first".to_vec()));
    assert_eq!(find(root.path(), b"third").kind, EntryKind::HardLink(b"d/first".to_vec()));
    assert_eq!(find(root.path(), b"l2").kind, EntryKind::HardLink(b"l1".to_vec()));
    assert_eq!(files.iter().filter(|(_, content)| content == b"content").count(), 1);
}

#[test]
fn names_need_not_be_utf_8_and_may_have_255_bytes() {
    let root = TempDir::new().unwrap();
    let names = [vec![b'n'; 255], vec![0xff; 255]];
    for name in &names {
        fs::write(root.path().join(OsStr::from_bytes(name)), b"").unwrap();
    }
    let files = read_all(root.path());
    assert_eq!(files[1].0.path, names[0]);
    assert_eq!(files[2].0.path, names[1]);
}

#[test]
fn extended_attributes_are_read_from_files_directories_and_links() {
    let root = TempDir::new().unwrap();
    let at = |name: &str| root.path().join(name);
    fs::write(at("file"), b"").unwrap();
    fs::create_dir(at("dir")).unwrap();
    symlink("file", at("link")).unwrap();
    let large = vec![b'x'; 2000];
    let set = |path: &str, name: &str, value: &[u8]| setxattr(at(path), name, value, XattrFlags::empty());
    set("file", "user.binary", b"\0\xff").unwrap();
    set("file", "user.empty", b"").unwrap();
    set("file", "user.large", &large).unwrap();
    set("dir", "user.dir", b"d").unwrap();
    let xattrs = |path: &[u8]| {
        let xattrs = find(root.path(), path).metadata.xattrs;
        xattrs.into_iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect::<Vec<_>>()
    };
    let expected = [
        (b"user.binary".to_vec(), b"\0\xff".to_vec()),
        (b"user.empty".to_vec(), vec![]),
        (b"user.large".to_vec(), large),
    ];
    assert_eq!(xattrs(b"file"), expected);
    assert_eq!(xattrs(b"dir"), [(b"user.dir".to_vec(), b"d".to_vec())]);
    assert_eq!(xattrs(b"link"), []);
    // Only root may set attributes of a link itself.
    if rustix::fs::lsetxattr(at("link"), "trusted.mark", b"l", XattrFlags::empty()).is_ok() {
        assert_eq!(xattrs(b"link"), [(b"trusted.mark".to_vec(), b"l".to_vec())]);
    }
}

#[test]
fn trees_deeper_than_a_path_may_be_long_are_walked() {
    const DEPTH: usize = 3000;
    let root = TempDir::new().unwrap();
    let mut fd = openat(CWD, root.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        mkdirat(&fd, "dir", Mode::from(0o755)).unwrap();
        File::from(openat(&fd, "later", OFlags::CREATE | OFlags::WRONLY, Mode::from(0o644)).unwrap())
            .flush()
            .unwrap();
        fd = openat(&fd, "dir", OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    drop(fd);
    let files = read_all(root.path());
    assert_eq!(files.len(), 1 + 2 * DEPTH);
    assert_eq!(files[DEPTH].0.path, vec!["dir"; DEPTH].join("/").into_bytes());
    assert_eq!(files[2 * DEPTH].0.path, b"later");
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join("f"), [1; 5000]).unwrap();
    let mut source = DirectorySource::open(root.path()).unwrap();
    step_to(&mut source, b"f");
    source.read(&mut [0; 1000]).unwrap();
    File::options().write(true).open(root.path().join("f")).unwrap().set_len(2000).unwrap();
    let error = read_content(&mut source).unwrap_err();
    assert!(changed(&error) && error.to_string().contains("shrank"), "{error}");
    assert!(source.next_entry().unwrap().is_none(), "an error is the end");
}

#[test]
fn a_file_that_is_written_to_while_it_is_read_is_an_error() {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join("f"), [1; 5000]).unwrap();
    let mut source = DirectorySource::open(root.path()).unwrap();
    step_to(&mut source, b"f");
    source.read(&mut [0; 1000]).unwrap();
    File::options().append(true).open(root.path().join("f")).unwrap().write_all(b"more").unwrap();
    let error = read_content(&mut source).unwrap_err();
    assert!(changed(&error), "{error}");
}

#[test]
fn a_file_that_vanishes_before_its_turn_is_an_error_that_names_it() {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join("f"), b"").unwrap();
    let mut source = DirectorySource::open(root.path()).unwrap();
    step_to(&mut source, b".");
    fs::remove_file(root.path().join("f")).unwrap();
    let error = source.next_entry().unwrap_err();
    assert!(changed(&error) && error.to_string().contains("/f"), "{error}");
}

#[test]
fn a_directory_that_is_moved_out_does_not_lead_the_walk_astray() {
    let root = TempDir::new().unwrap();
    let elsewhere = TempDir::new().unwrap();
    let deep = "d/".repeat(OPEN_LEVELS_LIMIT + 5);
    fs::create_dir_all(root.path().join(&deep)).unwrap();
    fs::write(root.path().join("z"), b"").unwrap();
    let mut source = DirectorySource::open(root.path()).unwrap();
    step_to(&mut source, deep.trim_end_matches('/').as_bytes());
    fs::rename(root.path().join("d/d"), elsewhere.path().join("d")).unwrap();
    let error =
        std::iter::repeat_with(|| source.next_entry()).find_map(Result::err).expect("the move is noticed");
    assert!(changed(&error) && error.to_string().contains("moved"), "{error}");
}

#[test]
fn what_is_no_directory_is_refused() {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join("f"), b"").unwrap();
    let message =
        |path: &str| DirectorySource::open(root.path().join(path)).err().expect("it fails").to_string();
    assert!(message("f").contains("Not a directory"));
    assert!(message("missing").contains("No such file or directory"));
}
