use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::*;
use crate::state::{Kind, Labels, SnapshotId};

fn options_of(kind: Kind, lowers: &[&str], labels: &Labels) -> Mount {
    let lowers: Vec<PathBuf> = lowers.iter().map(PathBuf::from).collect();
    let layers =
        Layers { kind, upper: Path::new("/s/9/fs"), work: Path::new("/s/9/work"), lowers: &lowers, labels };
    let mut mounts = mounts(&layers, &["index=off".to_owned()]);
    assert_eq!(mounts.len(), 1);
    mounts.remove(0)
}

#[test]
fn a_snapshot_without_parents_is_bound() {
    let labels = Labels::new();
    let mount = options_of(Kind::Active, &[], &labels);
    assert_eq!((mount.kind, mount.source.as_str()), ("bind", "/s/9/fs"));
    assert_eq!(mount.options, ["rw", "rbind"]);
    assert_eq!(options_of(Kind::View, &[], &labels).options, ["ro", "rbind"]);
}

#[test]
fn a_view_of_one_layer_binds_that_layer_read_only() {
    let mount = options_of(Kind::View, &["/s/1/fs"], &Labels::new());
    assert_eq!((mount.kind, mount.source.as_str()), ("bind", "/s/1/fs"));
    assert_eq!(mount.options, ["ro", "rbind"]);
}

#[test]
fn layers_are_stacked_nearest_first() {
    let mount = options_of(Kind::Active, &["/s/2/fs", "/s/1/fs"], &Labels::new());
    assert_eq!((mount.kind, mount.source.as_str()), ("overlay", "overlay"));
    assert_eq!(
        mount.options,
        ["workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/2/fs:/s/1/fs", "index=off"]
    );
    let view = options_of(Kind::View, &["/s/2/fs", "/s/1/fs"], &Labels::new());
    assert_eq!(view.options, ["lowerdir=/s/2/fs:/s/1/fs", "index=off"]);
}

#[test]
fn id_mappings_become_mount_options_and_the_owner_of_the_root() {
    let labels = Labels::from([
        ("containerd.io/snapshot/uidmapping".to_owned(), "0:1000:65536".to_owned()),
        ("containerd.io/snapshot/gidmapping".to_owned(), "1:5:1,0:2000:65536".to_owned()),
    ]);
    let mount = options_of(Kind::Active, &[], &labels);
    assert_eq!(mount.options, ["uidmap=0:1000:65536", "gidmap=1:5:1,0:2000:65536", "rw", "rbind"]);
    let root = tempfile::tempdir().unwrap();
    let directories = Directories::open(root.path()).unwrap();
    let attributes = RootAttributes::default().mapped(&labels).unwrap();
    directories.create(SnapshotId(3), Kind::Active, &attributes).unwrap();
    let metadata = fs::metadata(directories.upper(SnapshotId(3))).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (1000, 2000));
}

#[test]
fn a_mapping_without_root_is_refused() {
    for mapping in ["1:1000:5", "0:1000", "0:1000:0", "a:b:c", ""] {
        let labels = Labels::from([("containerd.io/snapshot/uidmapping".to_owned(), mapping.to_owned())]);
        let error = RootAttributes::default().mapped(&labels).unwrap_err();
        assert!(matches!(error, crate::Error::Invalid { .. }), "{mapping}: {error}");
    }
}

#[test]
fn the_root_of_a_snapshot_looks_like_the_image_beneath() {
    let root = tempfile::tempdir().unwrap();
    let image = root.path().join("image");
    fs::create_dir(&image).unwrap();
    let wanted = RootAttributes::all_of(&image).unwrap();
    let directories = Directories::open(&root.path().join("root")).unwrap();
    directories.create(SnapshotId(1), Kind::Active, &wanted).unwrap();
    assert_eq!(RootAttributes::all_of(&directories.upper(SnapshotId(1))).unwrap(), wanted);
}

#[test]
fn only_numbered_directories_are_snapshots() {
    let root = tempfile::tempdir().unwrap();
    let directories = Directories::open(root.path()).unwrap();
    directories.create(SnapshotId(12), Kind::View, &RootAttributes::default()).unwrap();
    fs::create_dir(root.path().join("snapshots/lost+found")).unwrap();
    assert_eq!(directories.list().unwrap(), [SnapshotId(12)]);
    directories.remove(SnapshotId(12)).unwrap();
    directories.remove(SnapshotId(12)).unwrap();
    assert!(directories.list().unwrap().is_empty());
}

#[test]
fn usage_counts_a_file_with_two_names_once() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a"), vec![1; 100_000]).unwrap();
    let one = disk_usage(root.path()).unwrap();
    assert_eq!(one.inodes, 2);
    assert!(one.size >= 100_000);
    fs::hard_link(root.path().join("a"), root.path().join("b")).unwrap();
    assert_eq!(disk_usage(root.path()).unwrap(), one);
}
