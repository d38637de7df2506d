use super::mountinfo::contains;
use super::*;
use crate::error::Error;
use crate::state::{Kind, Labels, Record, SnapshotId, Timestamp, Usage};

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn parent(id: u64, pairs: &[(&str, &str)]) -> (String, Record) {
    let record = Record {
        id: SnapshotId(id),
        kind: Kind::Committed,
        parent: None,
        labels: labels(pairs),
        created: Timestamp::now(),
        updated: Timestamp::now(),
        usage: Usage::default(),
        lazy: false,
    };
    (format!("k8s.io/{id}/layer"), record)
}

const BLOB: (&str, &str) = ("containerd.io/snapshot/nydus-blob", "true");
/// SHA-256 of `sha256:a sha256:b`, as the OCI image specification defines chain ids.
const CHAIN_OF_A_AND_B: &str = "970a948bffa8de94d6e22d747ba8c95030e6e546909f98f54e99a13005e173a8";
const BOOTSTRAP: (&str, &str) = ("containerd.io/snapshot/nydus-bootstrap", "true");

#[test]
fn labels_say_what_a_layer_is() {
    assert_eq!(Layer::of(&labels(&[BLOB])), Layer::Blob);
    assert_eq!(Layer::of(&labels(&[BOOTSTRAP])), Layer::Bootstrap);
    assert_eq!(Layer::of(&labels(&[("containerd.io/snapshot/nydus-blob", "false")])), Layer::Plain);
    assert_eq!(Layer::of(&labels(&[("containerd.io/snapshot.ref", "sha256:1")])), Layer::Plain);
}

#[test]
fn a_bootstrap_hides_what_is_beneath_it() {
    let parents = vec![parent(4, &[]), parent(3, &[BOOTSTRAP]), parent(2, &[BLOB]), parent(1, &[BLOB])];
    let beneath = Beneath::of("app", parents).unwrap();
    assert_eq!(beneath.plain, [SnapshotId(4)]);
    assert_eq!(beneath.image.unwrap().1.id, SnapshotId(3));
}

#[test]
fn data_without_a_bootstrap_shows_nothing_rather_than_an_empty_directory() {
    let error = Beneath::of("app", vec![parent(1, &[BLOB])]).unwrap_err();
    assert!(matches!(error, Error::NoBootstrap { .. }));
}

#[test]
fn a_blob_is_known_by_its_label_or_as_the_lowest_layer() {
    let cri = ("containerd.io/snapshot/cri.layer-digest", "sha256:b");
    let chain = ("containerd.io/snapshot.ref", "sha256:c");
    let (_, lowest) = parent(1, &[BLOB, chain]);
    assert_eq!(blob_of(&lowest), Some("sha256:c"));
    let (_, mut upper) = parent(2, &[BLOB, chain, cri]);
    upper.parent = Some("k8s.io/1/layer".to_owned());
    assert_eq!(blob_of(&upper), Some("sha256:b"));
    let (_, mut unnamed) = parent(2, &[BLOB, chain]);
    unnamed.parent = Some("k8s.io/1/layer".to_owned());
    assert_eq!(blob_of(&unnamed), None);
}

#[test]
fn mount_points_are_found_with_their_escapes() {
    let mounts = b"36 35 98:0 / /mnt rw - ext4 /dev/a rw\n37 36 0:5 / /mnt/with\\040space ro - fuse f ro\n";
    assert!(contains(mounts, b"/mnt"));
    assert!(contains(mounts, b"/mnt/with space"));
    assert!(!contains(mounts, b"/mnt/with"));
}

#[test]
fn a_blob_is_found_among_an_images_blobs_by_its_chain_id() {
    let chain = ("containerd.io/snapshot.ref", "sha256:0000");
    let (_, lowest) = parent(1, &[BLOB, ("containerd.io/snapshot.ref", "sha256:a")]);
    let (_, mut upper) = parent(2, &[BLOB, chain]);
    let blobs = ["sha256:c".to_owned(), "sha256:b".to_owned()];
    assert_eq!(blob_among(&upper, &lowest, &blobs), None);
    upper.labels.insert("containerd.io/snapshot.ref".to_owned(), format!("sha256:{CHAIN_OF_A_AND_B}"));
    assert_eq!(blob_among(&upper, &lowest, &blobs), Some("sha256:b"));
}
