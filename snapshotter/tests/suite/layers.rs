//! What mounted snapshots show: every layer stack equals the same changes made in one directory.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use crate::harness::Harness;
use crate::needs_root;
use crate::tree::tree;

type Change = dyn Fn(&Path);

fn write(root: &Path, name: &str, content: &str, mode: u32) {
    fs::write(root.join(name), content).unwrap();
    fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
}

fn make_dir(root: &Path, name: &str, mode: u32) {
    fs::create_dir(root.join(name)).unwrap();
    fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
}

/// Applies each change as a layer, and checks in a view and under the next layer that it shows what the changes make of a
/// plain directory.
async fn check(changes: &[&Change]) {
    check_every(1, changes).await;
}

/// The same, comparing only at every `step`th layer, and at the last.
async fn check_every(step: usize, changes: &[&Change]) {
    let harness = Harness::start().await;
    let flat = harness.work("flat");
    let mut parent = String::new();
    for (number, change) in changes.iter().enumerate() {
        let compare = number % step == 0 || number + 1 == changes.len();
        let key = format!("layer-{number}-a");
        let mounts = harness.prepare(&key, &parent).await.unwrap();
        {
            let mounted = harness.mount(&mounts, &key);
            if compare {
                assert_eq!(tree(mounted.path()), tree(&flat), "beneath layer {number}");
            }
            change(mounted.path());
        }
        change(&flat);
        let name = format!("layer-{number}");
        harness.commit(&name, &key).await.unwrap();
        parent.clone_from(&name);
        if !compare {
            continue;
        }
        let view = format!("{name}-view");
        let mounts = harness.view(&view, &name).await.unwrap();
        {
            let mounted = harness.mount(&mounts, &view);
            assert_eq!(tree(mounted.path()), tree(&flat), "after layer {number}");
        }
        harness.remove(&view).await.unwrap();
    }
}

fn own(root: &Path, name: &str, id: u32) {
    chown(root.join(name), Some(id), Some(id)).unwrap();
}

#[tokio::test]
async fn an_upper_layer_changes_files_of_a_lower_one() {
    needs_root!();
    check(&[
        &|root| {
            make_dir(root, "etc", 0o700);
            write(root, "etc/hosts", "mydomain 10.0.0.1", 0o644);
            write(root, "etc/profile", "PATH=/usr/bin", 0o644);
        },
        &|root| {
            write(root, "etc/hosts", "mydomain 10.0.0.2", 0o644);
            write(root, "etc/profile", "PATH=/usr/bin", 0o666);
            make_dir(root, "root", 0o700);
            write(root, "root/.bashrc", "PATH=/usr/sbin:/usr/bin", 0o644);
        },
    ])
    .await;
}

#[tokio::test]
async fn a_directory_made_anew_hides_the_old_one() {
    needs_root!();
    check(&[
        &|root| {
            make_dir(root, "lib", 0o700);
            write(root, "lib/hidden", "", 0o644);
        },
        &|root| {
            fs::remove_dir_all(root.join("lib")).unwrap();
            make_dir(root, "lib", 0o700);
            write(root, "lib/not-hidden", "", 0o644);
        },
        &|root| write(root, "lib/newfile", "", 0o644),
    ])
    .await;
}

#[tokio::test]
async fn owners_and_permissions_survive_commits() {
    needs_root!();
    check(&[
        &|root| {
            for number in 1..6 {
                make_dir(root, &format!("dir{number}"), 0o700);
            }
            write(root, "dir4/f1", "...", 0o644);
            write(root, "dir5/f1", "...", 0o4755);
            for name in ["dir1", "dir2", "dir3", "dir5", "dir5/f1"] {
                own(root, name, 1);
            }
        },
        &|root| {
            own(root, "dir2", 0);
            fs::remove_dir_all(root.join("dir3")).unwrap();
            own(root, "dir4", 1);
            own(root, "dir4/f1", 1);
        },
        &|root| {
            make_dir(root, "dir3", 0o700);
            own(root, "dir3", 1);
            fs::remove_dir_all(root.join("dir5")).unwrap();
            make_dir(root, "dir5", 0o700);
            own(root, "dir5", 1);
        },
    ])
    .await;
}

#[tokio::test]
async fn deleted_and_moved_files_stay_so() {
    needs_root!();
    check(&[
        &|root| {
            write(root, "foobar", "foobar\n", 0o777);
            make_dir(root, "dir1", 0o700);
            write(root, "dir1/f1", "Hello", 0o644);
            make_dir(root, "dir2", 0o700);
            write(root, "dir2/f2", "...", 0o644);
            make_dir(root, "somefiles", 0o700);
            write(root, "somefiles/f1", "was here first!", 0o644);
            write(root, "somefiles/f2", "nothing interesting", 0o644);
        },
        &|root| {
            fs::remove_file(root.join("foobar")).unwrap();
            make_dir(root, "dir3", 0o700);
            write(root, "dir3/f1", "Hello", 0o644);
            fs::remove_dir_all(root.join("dir1")).unwrap();
            fs::hard_link(root.join("dir2/f2"), root.join("dir3/f2")).unwrap();
            fs::remove_file(root.join("dir2/f2")).unwrap();
            write(root, "somefiles/f1-overwrite", "new content 1", 0o644);
            fs::rename(root.join("somefiles/f1-overwrite"), root.join("somefiles/f1")).unwrap();
            fs::rename(root.join("somefiles/f2"), root.join("somefiles/f3")).unwrap();
        },
        &|_| {},
    ])
    .await;
}

#[tokio::test]
async fn a_hundred_and_twenty_eight_layers_mount() {
    needs_root!();
    let bottom = |root: &Path| {
        write(root, "bottom", "way at the bottom\n", 0o777);
        write(root, "overwriteme", "FIRST!\n", 0o777);
        make_dir(root, "addhere", 0o755);
        make_dir(root, "onlyme", 0o755);
        write(root, "onlyme/bottom", "bye!\n", 0o777);
    };
    let mut changes: Vec<Box<Change>> = vec![Box::new(bottom)];
    for number in 1..128 {
        changes.push(Box::new(move |root: &Path| {
            write(root, "overwriteme", &format!("{number} WAS HERE!\n"), 0o777);
            write(root, &format!("addhere/file-{number}"), "same\n", 0o755);
            fs::remove_dir_all(root.join("onlyme")).unwrap();
            make_dir(root, "onlyme", 0o755);
            write(root, &format!("onlyme/file-{number}"), "only me!\n", 0o777);
        }));
    }
    check_every(16, &changes.iter().map(Box::as_ref).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_view_cannot_be_written() {
    needs_root!();
    let harness = Harness::start().await;
    harness.prepare("one-a", "").await.unwrap();
    harness.commit("one", "one-a").await.unwrap();
    harness.prepare("two-a", "one").await.unwrap();
    harness.commit("two", "two-a").await.unwrap();
    // A bind mount of a lone directory, of a lone parent, and an overlay of two.
    for (key, parent) in [("alone", ""), ("of-one", "one"), ("of-two", "two")] {
        let mounts = harness.view(key, parent).await.unwrap();
        let mounted = harness.mount(&mounts, key);
        let error = fs::write(mounted.path().join("testfile"), "testcontent").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem, "{key}");
    }
}

#[tokio::test]
async fn the_root_is_open_to_all_and_belongs_to_the_owner_of_the_parents_root() {
    needs_root!();
    let harness = Harness::start().await;
    let mounts = harness.prepare("a", "").await.unwrap();
    let mounted = harness.mount(&mounts, "a");
    assert_eq!(fs::metadata(mounted.path()).unwrap().permissions().mode() & 0o7777, 0o755);
    chown(mounted.path(), Some(12), Some(34)).unwrap();
    drop(mounted);
    harness.commit("c", "a").await.unwrap();
    let mounts = harness.prepare("b", "c").await.unwrap();
    let mounted = harness.mount(&mounts, "b");
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(mounted.path()).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (12, 34));
}
