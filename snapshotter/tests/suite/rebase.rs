//! Layers that are unpacked at the same time: prepared without a parent, put on it when they are committed. containerd does
//! so from 2.3 on where its configuration says that a snapshotter is capable of `rebase`.

use std::fs;
use std::path::Path;

use tonic::Code;

use crate::harness::{Harness, code};
use crate::needs_root;
use crate::nydus::Node;

const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
const PARENT_CHAIN_ID: &str = "containerd.io/snapshot/parent-chain-id";
const DIFF_ID: &str = "containerd.io/snapshot/diff-id";

fn option<'m>(mounts: &'m [containerd_client::types::Mount], name: &str) -> &'m str {
    mounts[0].options.iter().find_map(|option| option.strip_prefix(name)).unwrap()
}

#[tokio::test]
async fn layers_committed_on_their_parents_are_stacked() {
    needs_root!();
    let harness = Harness::start().await;
    let lower = [(SNAPSHOT_REF, "sha256:a")];
    let upper = [(SNAPSHOT_REF, "sha256:ab"), (PARENT_CHAIN_ID, "sha256:a")];
    // Both are there before either is committed.
    let lower_mounts = harness.prepare_with("lower-a", "", &lower).await.unwrap();
    let upper_mounts = harness.prepare_with("upper-a", "", &upper).await.unwrap();
    fs::write(Path::new(&lower_mounts[0].source).join("kept"), "kept").unwrap();
    fs::write(Path::new(&lower_mounts[0].source).join("deleted"), "deleted").unwrap();
    // containerd turns whiteouts into those of overlayfs only if the mount is an overlay, in its upper directory.
    assert_eq!(upper_mounts[0].r#type, "overlay");
    let directory = Path::new(option(&upper_mounts, "upperdir="));
    fs::write(directory.join("added"), "added").unwrap();
    let whiteout = directory.join("deleted");
    nix::sys::stat::mknod(&whiteout, nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::empty(), 0)
        .unwrap();
    drop(harness.mount(&upper_mounts, "upper-a"));
    assert_eq!(harness.mounts("upper-a").await.unwrap(), upper_mounts);

    harness.commit_with("lower", "lower-a", &lower).await.unwrap();
    assert_eq!(code(harness.commit_on("upper", "upper-a", "nowhere", &upper).await), Code::NotFound);
    harness.commit_on("upper", "upper-a", "lower", &upper).await.unwrap();
    assert_eq!(harness.stat("upper").await.unwrap().parent, "lower");
    assert_eq!(code(harness.remove("lower").await), Code::FailedPrecondition);
    let mounts = harness.view("view", "upper").await.unwrap();
    let mounted = harness.mount(&mounts, "view");
    let mut names: Vec<_> =
        fs::read_dir(mounted.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["added", "kept"]);
}

#[tokio::test]
async fn a_snapshot_made_on_a_parent_keeps_it() {
    let harness = Harness::start().await;
    for name in ["one", "two"] {
        harness.prepare("a", "").await.unwrap();
        harness.commit(name, "a").await.unwrap();
    }
    harness.prepare("b", "one").await.unwrap();
    assert_eq!(code(harness.commit_on("c", "b", "two", &[]).await), Code::InvalidArgument);
    harness.commit_on("c", "b", "one", &[]).await.unwrap();
    assert_eq!(harness.stat("c").await.unwrap().parent, "one");
}

/// containerd looks for a layer that is said to be there by the parent that it named, which is none.
#[tokio::test]
async fn data_layers_are_found_without_their_parents_and_the_bootstrap_shows_the_image() {
    needs_root!();
    let node = Node::start().await;
    let harness = &node.harness;
    let (first, second) = (Node::digest('1'), Node::digest('2'));
    let chains = [first.clone(), "sha256:chain-of-two".to_owned(), "sha256:chain-of-three".to_owned()];
    for (number, blob) in [&first, &second].into_iter().enumerate() {
        let mut labels = vec![
            ("containerd.io/snapshot/nydus-blob", "true"),
            (SNAPSHOT_REF, chains[number].as_str()),
            (DIFF_ID, blob.as_str()),
        ];
        if number > 0 {
            labels.push((PARENT_CHAIN_ID, &chains[number - 1]));
        }
        assert_eq!(code(harness.prepare_with("blob", "", &labels).await), Code::AlreadyExists);
        let filter = format!("labels.\"{SNAPSHOT_REF}\"=={},parent==\"\"", chains[number]);
        assert_eq!(harness.list(&[&filter]).await.unwrap().len(), 1);
    }
    let labels = [
        ("containerd.io/snapshot/nydus-bootstrap", "true"),
        ("containerd.io/snapshot/cri.image-ref", "r/i:1"),
        (SNAPSHOT_REF, chains[2].as_str()),
        (PARENT_CHAIN_ID, chains[1].as_str()),
    ];
    let mounts = harness.prepare_with("boot-a", "", &labels).await.unwrap();
    assert_eq!(mounts[0].r#type, "bind");
    let image = Path::new(&mounts[0].source).join("image");
    fs::create_dir(&image).unwrap();
    fs::write(image.join("image.boot"), serde_json::to_vec(&node.content("i")).unwrap()).unwrap();
    harness.commit_on("boot", "boot-a", &chains[1], &labels).await.unwrap();
    assert_eq!(harness.stat("boot").await.unwrap().parent, chains[1]);
    let mounts = harness.prepare("container", "boot").await.unwrap();
    let mounted = harness.mount(&mounts, "container");
    assert_eq!(fs::read(mounted.path().join("hello")).unwrap(), b"i");
    // A plain layer has nothing to lie on where no bootstrap is.
    let labels = [(SNAPSHOT_REF, "sha256:plain"), (PARENT_CHAIN_ID, chains[1].as_str())];
    harness.prepare_with("plain-a", "", &labels).await.unwrap();
    assert_eq!(
        code(harness.commit_on("plain", "plain-a", &chains[1], &labels).await),
        Code::FailedPrecondition
    );
}
