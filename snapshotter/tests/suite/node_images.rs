//! Images of the node itself over the control socket: mounted whatever containers there are.

use std::fs;
use std::path::{Path, PathBuf};

use fuse_daemon::control::protocol::Request;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use registry::digest::sha256;
use snapshotter::control::{BackendSpec, ClientError, MergedBootstrap, NodeImage};

use crate::fake_daemon::{self, Bootstrap};
use crate::harness::{Harness, eventually};
use crate::held::{is_marked_at, kill_daemon, lasting, mark, mount_id};
use crate::needs_root;
use crate::nydus::Node;
use crate::sets::{client, registry};

/// An image of one blob, both named by `content` alone.
fn image(name: &str, content: &str) -> NodeImage {
    let bootstrap = MergedBootstrap {
        digest: sha256(format!("gzip {content}").as_bytes()),
        size: 9,
        diff_id: sha256(format!("tar {content}").as_bytes()),
    };
    let blobs = vec![sha256(format!("blob {content}").as_bytes())];
    NodeImage { name: name.to_owned(), backends: registry(), bootstrap, blobs }
}

/// Mounts an image of this content; where it is.
async fn mounted(node: &Node, name: &str, content: &str) -> PathBuf {
    let bootstrap = Bootstrap { hands_over: true, ..node.content(content) };
    fake_daemon::will_make(node.harness.dir.path(), &bootstrap);
    let (place, changed) = client(&node.harness).mount(&image(name, content)).await.unwrap();
    assert!(changed && place.starts_with(node.harness.config.root.join("mounts")), "{}", place.display());
    assert!(shows(&place, content));
    place
}

fn shows(place: &Path, content: &str) -> bool {
    fs::read_to_string(place.join("hello")).is_ok_and(|found| found == content)
}

/// The blobs of what the daemon was told last to keep.
fn kept(node: &Node) -> Option<usize> {
    node.requests().iter().rev().find_map(|request| match request {
        Request::Keep { blobs } => Some(blobs.len()),
        _ => None,
    })
}

/// What the daemon was told of pins, in order: whose blob, and whether it is pinned.
fn pins(node: &Node, contents: &[&str]) -> Vec<(String, bool)> {
    let name = |blob: String| {
        let of = |content: &&&str| sha256(format!("blob {content}").as_bytes()).as_ref() == blob;
        contents.iter().find(of).map_or(blob.clone(), ToString::to_string)
    };
    let pins = node.requests().into_iter().filter_map(|request| match request {
        Request::Pin { blobs, pinned } => Some((blobs, pinned)),
        _ => None,
    });
    pins.flat_map(|(blobs, pinned)| blobs.into_iter().map(move |blob| (blob.to_string(), pinned)))
        .map(|(blob, pinned)| (name(blob), pinned))
        .collect()
}

#[tokio::test]
async fn one_is_held_and_its_blobs_kept_until_it_is_unmounted() {
    needs_root!();
    let node = Node::start().await;
    let client = client(&node.harness);
    let place = mounted(&node, "cluster", "one").await;
    let id = mount_id(&node);
    assert!(fake_daemon::is_held(node.harness.dir.path(), &id));
    assert_eq!(client.mount(&image("cluster", "one")).await.unwrap(), (place.clone(), false));
    let [status] = &client.node_images().await.unwrap()[..] else { panic!("not one") };
    assert_eq!((status.name.as_str(), &status.mountpoint, status.mounted), ("cluster", &place, true));
    // No snapshot names it, and neither clean-up nor a full cache takes it away.
    fake_daemon::fill(node.harness.dir.path());
    let looks = || fake_daemon::looks(node.harness.dir.path()).len();
    // One may have begun before it was full; there are ten seconds between two.
    for _ in 0..2 {
        let seen = looks();
        eventually("the cache is looked at", async || (looks() > seen).then_some(())).await;
    }
    node.harness.cleanup().await.unwrap();
    assert!(shows(&place, "one") && kept(&node) == Some(1));
    assert_eq!(pins(&node, &["one"]), [("one".to_owned(), true)]);

    assert!(client.unmount("cluster").await.unwrap());
    assert!(!place.exists() && node.harness.directories().is_empty());
    assert!(!fake_daemon::is_held(node.harness.dir.path(), &id));
    assert_eq!(kept(&node), Some(0));
    assert_eq!(pins(&node, &["one"]), [("one".to_owned(), true), ("one".to_owned(), false)]);
    assert_eq!(client.node_images().await.unwrap(), []);
    assert!(!client.unmount("cluster").await.unwrap());
}

#[tokio::test]
async fn one_goes_on_whichever_process_is_killed_or_started_again() {
    needs_root!();
    let mut node = Node::start().await;
    let place = mounted(&node, "cluster", "one").await;
    mark(&node);
    let client = client(&node.harness);
    let is_held_again = async || client.node_images().await.unwrap()[0].mounted.then_some(());
    for _ in 0..2 {
        kill_daemon(&node).await;
        eventually("the next daemon goes on with it", is_held_again).await;
        node.harness.restart().await;
        eventually("the next service holds it", is_held_again).await;
    }
    assert_eq!(client.mount(&image("cluster", "one")).await.unwrap(), (place.clone(), false));
    assert!(is_marked_at(&place), "it was mounted again");
    assert!(fake_daemon::is_held(node.harness.dir.path(), &mount_id(&node)));
}

/// The bootstrap is on the node, so that it needs no registry.
#[tokio::test]
async fn one_is_mounted_at_its_place_after_a_boot_and_tried_until_it_can_be() {
    needs_root!();
    let mut node = Node::start().await;
    let place = mounted(&node, "cluster", "one").await;
    let id = place.file_name().unwrap().to_owned();
    let bootstrap = node.harness.config.root.join("snapshots").join(id).join("fs/image/image.boot");
    for broken in [false, true] {
        let pid = node.daemon_pid().await;
        node.harness.stop().await;
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
        umount2(&place, MntFlags::MNT_DETACH).unwrap();
        let content = Bootstrap { broken, ..lasting(&node) };
        fs::write(&bootstrap, serde_json::to_vec(&content).unwrap()).unwrap();
        let mounts = node.mount_requests();
        node.harness.restart_after_stop().await;
        if broken {
            let asked = || node.mount_requests() > mounts + 1;
            eventually("it is tried again", async || asked().then_some(())).await;
            assert!(!client(&node.harness).node_images().await.unwrap()[0].mounted);
            let content = Bootstrap { broken: false, ..content };
            fs::write(&bootstrap, serde_json::to_vec(&content).unwrap()).unwrap();
        }
        eventually("it is mounted", async || shows(&place, "i").then_some(())).await;
    }
    let made = node.requests().iter().filter(|request| matches!(request, Request::MakeBootstrap(_))).count();
    assert_eq!(made, 1);
    // And when somebody has unmounted it.
    umount2(&place, MntFlags::MNT_DETACH).unwrap();
    eventually("it is mounted again", async || shows(&place, "i").then_some(())).await;
}

#[tokio::test]
async fn another_takes_its_place_once_that_serves_and_what_fails_changes_nothing() {
    needs_root!();
    let mut node = Node::start().await;
    let first = mounted(&node, "cluster", "one").await;
    let broken = Bootstrap { broken: true, ..node.content("two") };
    fake_daemon::will_make(node.harness.dir.path(), &broken);
    let refused = client(&node.harness).mount(&image("cluster", "two")).await.unwrap_err();
    assert!(matches!(refused, ClientError::Control(_)), "{refused}");
    assert!(client(&node.harness).mount(&image("unknown", "two")).await.is_err());
    assert!(shows(&first, "one") && node.harness.mountpoints().len() == 1);

    let second = mounted(&node, "cluster", "two").await;
    assert!(second != first && !first.exists());
    let both = ["one", "two"];
    assert_eq!(pins(&node, &both).last(), Some(&("one".to_owned(), false)));
    node.harness.restart().await;
    let images = client(&node.harness).node_images().await.unwrap();
    assert_eq!(images.iter().map(|image| &image.mountpoint).collect::<Vec<_>>(), [&second]);
}

#[tokio::test]
async fn one_is_read_from_where_its_blobs_are_now() {
    needs_root!();
    let node = Node::start().await;
    let place = mounted(&node, "cluster", "one").await;
    let backends = vec![BackendSpec::Directory { path: "/moved".into() }];
    let moved = NodeImage { backends: backends.clone(), ..image("cluster", "one") };
    assert_eq!(client(&node.harness).mount(&moved).await.unwrap(), (place, true));
    let told = |request: &Request| matches!(request, Request::AddBackends { backends: told, .. } if *told == backends);
    assert!(node.requests().iter().any(told), "{:?}", node.requests());
    assert_eq!(client(&node.harness).node_images().await.unwrap()[0].backends, backends);
    assert_eq!(node.mount_requests(), 1);
}

#[tokio::test]
async fn one_that_is_not_sound_is_refused_before_it_is_sent() {
    let harness = Harness::start().await;
    let unsound = NodeImage { backends: Vec::new(), ..image("cluster", "one") };
    let refused = client(&harness).mount(&unsound).await.unwrap_err();
    assert!(matches!(&refused, ClientError::NodeImage(_)), "{refused}");
    assert_eq!(refused.to_string(), "node image \"cluster\": it has 0 backends, expected 1 to 16");
}
