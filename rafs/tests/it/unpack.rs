//! An unpacked image is the tree that went in.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rafs::bootstrap::{Bootstrap, WriteOptions};
use rafs::tree::{DeviceNumber, Kind, Layer, Tree};
use rafs::unpack::UnpackError;

use crate::support::{Builder, Format, OneBlob, metadata, paths, sample, written};

type Contents = BTreeMap<rafs::tree::NodeId, Vec<u8>>;

fn image() -> (Bootstrap, OneBlob, Layer, Contents) {
    let builder = sample(Format::default());
    let contents = builder.contents.clone();
    let (layer, stream) = builder.finish();
    (
        Bootstrap::from_bytes(written(&layer, &WriteOptions::default())).unwrap(),
        OneBlob(stream),
        layer,
        contents,
    )
}

#[test]
fn an_archive_holds_every_name_with_its_content() {
    let (bootstrap, blob, layer, contents) = image();
    let mut bytes = Vec::new();
    rafs::unpack::to_tar(&bootstrap, &blob, &mut bytes).unwrap();
    let mut expected = paths(&layer.tree);
    let mut archive = tar::Archive::new(&bytes[..]);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path_bytes().into_owned();
        let trimmed = path.strip_suffix(b"/").unwrap_or(&path);
        let trimmed = if trimmed == b"." { Vec::new() } else { [b"/", trimmed].concat() };
        let id = expected.remove(&trimmed).expect("the name is the image's");
        let node = layer.tree.node(id);
        let header = entry.header().clone();
        assert_eq!(header.mode().unwrap(), u32::from(node.metadata.permissions));
        assert_eq!(
            (entry.header().uid().unwrap(), header.gid().unwrap()),
            (node.metadata.uid.into(), node.metadata.gid.into())
        );
        let mut pax = BTreeMap::new();
        for record in entry.pax_extensions().unwrap().into_iter().flatten() {
            let record = record.unwrap();
            pax.insert(record.key_bytes().to_vec(), record.value_bytes().to_vec());
        }
        if !header.entry_type().is_hard_link() {
            for (name, value) in &node.metadata.xattrs {
                assert!(pax[&[b"SCHILY.xattr.", &name[..]].concat()] == value[..]);
            }
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        match &node.kind {
            Kind::Regular { .. } if header.entry_type().is_hard_link() => {
                assert_eq!(entry.link_name_bytes().unwrap().into_owned(), b"etc/linked");
            }
            Kind::Regular { .. } => assert!(content == contents[&id]),
            Kind::Symlink(target) => assert!(entry.link_name_bytes().unwrap().into_owned() == target[..]),
            Kind::CharDevice(number) | Kind::BlockDevice(number) => {
                let (major, minor) =
                    (header.device_major().unwrap().unwrap(), header.device_minor().unwrap().unwrap());
                assert_eq!(*number, DeviceNumber { major, minor });
            }
            _ => assert!(content.is_empty()),
        }
        if path == b"before 1970" {
            assert_eq!(pax[&b"mtime"[..]], b"-4.999999999");
        }
    }
    assert_eq!(expected.keys().collect::<Vec<_>>(), [&b"/socket".to_vec()], "tar has no sockets");
}

#[test]
fn a_directory_holds_every_file_with_its_metadata() {
    let (bootstrap, blob, layer, contents) = image();
    let target = tempfile::tempdir().unwrap();
    let target = target.path().join("new");
    let is_root = nix::unistd::geteuid().is_root();
    rafs::unpack::to_directory(&bootstrap, &blob, &target).unwrap();
    let mut inodes = BTreeMap::new();
    for (path, id) in paths(&layer.tree) {
        let node = layer.tree.node(id);
        let file = target.join(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(&path)));
        let is_device = matches!(node.kind, Kind::CharDevice(_) | Kind::BlockDevice(_));
        if is_device && !is_root {
            assert!(!file.exists());
            continue;
        }
        let found = fs::symlink_metadata(&file).unwrap();
        if !matches!(node.kind, Kind::Symlink(_)) {
            assert_eq!(found.mode() & 0o7777, u32::from(node.metadata.permissions), "{}", file.display());
        }
        let mtime = (found.mtime(), found.mtime_nsec());
        assert_eq!(
            mtime,
            (node.metadata.mtime.seconds, node.metadata.mtime.nanoseconds.into()),
            "{}",
            file.display()
        );
        if is_root {
            assert_eq!((found.uid(), found.gid()), (node.metadata.uid, node.metadata.gid));
        }
        if !matches!(node.kind, Kind::Directory(_)) {
            assert_eq!(
                *inodes.entry(id).or_insert(found.ino()),
                found.ino(),
                "names of one file are hard links"
            );
        }
        match &node.kind {
            Kind::Directory(_) => assert!(found.is_dir()),
            Kind::Regular { .. } => assert!(fs::read(&file).unwrap() == contents[&id]),
            Kind::Symlink(to) => assert_eq!(fs::read_link(&file).unwrap().as_os_str().as_bytes(), &to[..]),
            Kind::CharDevice(number) | Kind::BlockDevice(number) => {
                let device = nix::sys::stat::makedev(number.major.into(), number.minor.into());
                assert_eq!(found.rdev(), device);
            }
            Kind::Fifo => assert!(found.file_type().is_fifo()),
            Kind::Socket => assert!(found.file_type().is_socket()),
        }
    }
    assert_eq!(inodes.values().collect::<std::collections::BTreeSet<_>>().len(), inodes.len());
}

#[test]
fn a_directory_that_is_not_empty_is_left_alone() {
    let (bootstrap, blob, ..) = image();
    let target = tempfile::tempdir().unwrap();
    fs::write(target.path().join("mine"), "mine").unwrap();
    rafs::unpack::to_directory(&bootstrap, &blob, target.path()).unwrap_err();
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 1);
}

#[test]
fn an_image_with_a_changed_chunk_is_not_unpacked() {
    let (bootstrap, mut blob, layer, _) = image();
    let large = layer.tree.lookup([&b"large"[..]]).unwrap();
    let Kind::Regular { chunks, .. } = &layer.tree.node(large).kind else { panic!("a regular file") };
    let chunk = &layer.blobs[0].chunks[chunks[40].chunk.0 as usize];
    blob.0[chunk.compressed_offset as usize + 20] ^= 1;
    let error = rafs::unpack::to_tar(&bootstrap, &blob, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().starts_with("/large"), "{error}");
}

/// A symbolic link on the way to a hard link's first name must not lead out of the target.
#[test]
fn nothing_is_written_through_symbolic_links() {
    let outside = tempfile::tempdir().unwrap();
    let mut builder = Builder::new(Format::default());
    let link = Kind::Symlink(outside.path().as_os_str().as_bytes().into());
    builder.add(Tree::ROOT, b"a", metadata(0o777), link);
    let directory = builder.directory(Tree::ROOT, b"b");
    builder.file(directory, b"file", b"content");
    let (layer, stream) = builder.finish();
    let mut bytes = written(&layer, &WriteOptions::default());
    // The directory `b` becomes a second `a`, behind the first.
    let position = bytes.windows(4).position(|names| names == b"...a").map(|at| at + 4);
    bytes[position.unwrap()] = b'a';
    let bootstrap = Bootstrap::from_bytes(bytes).unwrap();
    let target = tempfile::tempdir().unwrap();
    rafs::unpack::to_directory(&bootstrap, &OneBlob(stream), target.path()).unwrap_err();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn an_image_that_cannot_be_unpacked_leaves_nothing() {
    let (bootstrap, blob, ..) = image();
    let parent = tempfile::tempdir().unwrap();
    let empty = parent.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for limit in [0, 1000, 300_000] {
        let done = std::cell::Cell::new(0);
        let watch = |bytes| {
            done.set(done.get() + bytes);
            if done.get() > limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        for target in [parent.path().join("new"), empty.clone()] {
            let unpack = rafs::unpack::Unpack::new(&bootstrap, &blob).watched(&watch);
            assert!(matches!(unpack.to_directory(&target), Err(UnpackError::Stopped)));
        }
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 1);
        assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
    }
}

#[test]
fn a_watch_is_told_of_all_the_content() {
    let (bootstrap, blob, ..) = image();
    let done = std::cell::Cell::new(0);
    let watch = |bytes| {
        done.set(done.get() + bytes);
        ControlFlow::Continue(())
    };
    rafs::unpack::Unpack::new(&bootstrap, &blob).watched(&watch).to_tar(&mut std::io::sink()).unwrap();
    assert_eq!(done.get(), rafs::unpack::content_size(&bootstrap).unwrap());
}

/// Others store `user.*` of symbolic links, pipes and devices; no file system has them.
#[test]
fn attributes_that_no_file_of_the_type_has_are_left_out() {
    let mut builder = sample(Format::default());
    let ids = paths(&builder.tree);
    for path in [&b"/symlink"[..], b"/pipe", b"/socket", b"/setuid"] {
        let xattrs = &mut builder.tree.node_mut(ids[path]).metadata.xattrs;
        xattrs.insert(b"user.note"[..].into(), b"x"[..].into());
    }
    let (layer, stream) = builder.finish();
    let bootstrap = Bootstrap::from_bytes(written(&layer, &WriteOptions::default())).unwrap();
    let xattrs = |path: &[u8]| bootstrap.xattrs(bootstrap.lookup_path(path).unwrap().unwrap()).unwrap();
    assert!(xattrs(b"symlink").is_empty() && xattrs(b"pipe").is_empty() && xattrs(b"socket").is_empty());
    assert!(xattrs(b"setuid").contains_key(&b"user.note"[..]));

    let mut archive = Vec::new();
    rafs::unpack::to_tar(&bootstrap, &OneBlob(stream.clone()), &mut archive).unwrap();
    let notes = archive.windows(22).filter(|window| *window == b"SCHILY.xattr.user.note").count();
    assert_eq!(notes, 1);
    let parent = tempfile::tempdir().unwrap();
    rafs::unpack::to_directory(&bootstrap, &OneBlob(stream), &parent.path().join("new")).unwrap();
}

/// A keyword ends at the first equals sign.
#[test]
fn an_equals_sign_in_an_attributes_name_is_written_as_gnu_tar_writes_it() {
    let mut builder = sample(Format::default());
    let id = paths(&builder.tree)[&b"/setuid"[..]];
    let xattrs = &mut builder.tree.node_mut(id).metadata.xattrs;
    xattrs.insert(b"user.a=b%"[..].into(), b"=value"[..].into());
    let (layer, stream) = builder.finish();
    let bootstrap = Bootstrap::from_bytes(written(&layer, &WriteOptions::default())).unwrap();
    let mut archive = Vec::new();
    rafs::unpack::to_tar(&bootstrap, &OneBlob(stream), &mut archive).unwrap();
    let expected = b"SCHILY.xattr.user.a%3Db%25==value\n";
    assert!(archive.windows(expected.len()).any(|window| window == expected));
}
