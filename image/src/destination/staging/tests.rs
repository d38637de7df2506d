//! How files come to their names.

use super::*;
use crate::destination::DiskUse;

async fn staged(target: &Path, shape: Shape, content: &'static [u8]) -> Arc<Staging> {
    let staging = Arc::new(Staging::new(target, shape).unwrap());
    staging.put_blob(content.into()).await.unwrap();
    staging
}

fn oci(name: &str) -> Shape {
    Shape::Oci { name: Some(name.to_owned()) }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn nothing_is_at_the_target_until_all_is_and_nothing_is_left_without_a_commit() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("layout");
    let staging = staged(&target, oci("a"), b"one").await;
    assert!(!target.exists());
    drop(staging);
    assert_eq!(names(folder.path()), [""; 0]);

    staged(&target, oci("a"), b"one").await.commit(Some(json!({"digest": "d:1"}))).unwrap();
    assert_eq!(names(folder.path()), ["layout"]);
    assert_eq!(names(&target), ["blobs", "index.json", "oci-layout"]);
}

#[tokio::test]
async fn an_image_joins_a_layout_and_replaces_the_one_of_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("layout");
    for (name, content, digest) in [("a", &b"one"[..], "d:1"), ("b", b"two", "d:2"), ("a", b"three", "d:3")] {
        staged(&target, oci(name), content).await.commit(Some(json!({ "digest": digest }))).unwrap();
    }
    let index: Value = serde_json::from_slice(&fs::read(target.join("index.json")).unwrap()).unwrap();
    let digests: Vec<_> =
        index["manifests"].as_array().unwrap().iter().map(|entry| &entry["digest"]).collect();
    assert_eq!(digests, ["d:2", "d:3"]);
    assert_eq!(names(&target.join(OCI_BLOBS)).len(), 3);
    assert_eq!(names(folder.path()), ["layout"]);
}

#[tokio::test]
async fn a_tar_holds_the_layout_and_replaces_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("image.tar");
    fs::write(&target, "old").unwrap();
    let staging = staged(&target, Shape::OciArchive { name: None }, b"one").await;
    staging.commit(Some(json!({"digest": "d:1"}))).unwrap();
    drop(staging);
    let mut tar = tar::Archive::new(File::open(&target).unwrap());
    let found: Vec<_> =
        tar.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!(found[..2], ["oci-layout", "index.json"]);
    assert!(found[4].starts_with("blobs/sha256/"), "{found:?}");
    assert_eq!(names(folder.path()), ["image.tar"]);
}

#[tokio::test]
async fn what_has_bounded_room_gives_it_back_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let purpose = &DiskUse { what: "tars", setting: "tar_bytes", of: "all", instead: "make none" };
    let space = DiskSpace::new(folder.path(), 10, purpose);
    let [one, other] = [(); 2].map(|()| {
        let staging = Staging::new(&folder.path().join("image.tar"), Shape::OciArchive { name: None });
        Arc::new(staging.unwrap().within(&space))
    });
    one.put_blob(Bytes::from_static(b"123456")).await.unwrap();
    let error = other.put_blob(Bytes::from_static(b"12345")).await.unwrap_err().to_string();
    assert!(error.starts_with("tars take more than 10 bytes in "), "{error}");
    assert!(error.ends_with(": raise tar_bytes, or make none"), "{error}");
    // What was refused takes no room.
    other.put_blob(Bytes::from_static(b"1234")).await.unwrap();
    drop(one);
    assert_eq!(space.left(), 6);
    drop(other);
    assert_eq!(space.left(), 10);
    assert_eq!(names(folder.path()), [""; 0]);
}

#[tokio::test]
async fn a_blob_that_is_given_up_or_comes_twice_takes_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let purpose = &DiskUse { what: "tars", setting: "tar_bytes", of: "all", instead: "make none" };
    let space = DiskSpace::new(folder.path(), 10, purpose);
    let staging = Staging::new(&folder.path().join("image.tar"), Shape::OciArchive { name: None });
    let staging = Arc::new(staging.unwrap().within(&space));
    for dropped in [false, true] {
        let mut writer = staging.begin().await.unwrap();
        writer.write(Bytes::from_static(b"12345678")).await.unwrap();
        match dropped {
            true => drop(writer),
            false => writer.cancel().await,
        }
        assert_eq!(space.left(), 10);
    }
    for _ in 0..2 {
        staging.put_blob(Bytes::from_static(b"12345")).await.unwrap();
        assert_eq!(space.left(), 5);
    }
    assert_eq!(names(staging.folder.path()), ["blobs"]);
    assert_eq!(names(&staging.blobs()).len(), 1);
}

#[test]
fn what_is_there_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    for (target, shape) in [
        (folder.path().to_owned(), oci("a")),
        (folder.path().to_owned(), Shape::Files),
        (folder.path().join("file"), oci("a")),
        (folder.path().to_owned(), Shape::OciArchive { name: None }),
    ] {
        assert!(matches!(Staging::new(&target, shape), Err(StoreError::Occupied { .. })));
    }
    assert_eq!(names(folder.path()), ["file"]);
}
