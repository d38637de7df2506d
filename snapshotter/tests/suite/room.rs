//! A cache that is nearly full: images that no container uses are unmounted.

use std::fs::{self, File};
use std::time::Duration;

use fuse_daemon::control::protocol::Request;

use crate::fake_daemon::{self, Bootstrap};
use crate::harness::eventually;
use crate::needs_root;
use crate::nydus::Node;

/// How long a call is watched that has to wait for something.
const WATCHED: Duration = Duration::from_millis(300);

#[tokio::test]
async fn who_prepares_a_container_while_its_image_goes_has_it_mounted_again() {
    needs_root!();
    let node = Node::start().await;
    let harness = &node.harness;
    let held = harness.work("held").join("file");
    let bootstrap = Bootstrap { held_by: Some(held.clone()), ..node.content("idle") };
    let (used, idle) = (node.content("used"), bootstrap);
    let (used, idle) = (node.pull("used", '1', &used).await, node.pull("idle", '2', &idle).await);
    for (key, image) in [("stays", &used), ("ends", &idle)] {
        harness.prepare(key, image).await.unwrap();
    }
    harness.remove("ends").await.unwrap();
    assert_eq!(node.mount_requests(), 2);
    // Unmounting takes its time.
    File::create(&held).unwrap();
    fake_daemon::fill(harness.dir.path());
    let unmounts =
        || node.requests().iter().filter(|request| matches!(request, Request::Umount { .. })).count();
    eventually("one is unmounted", async || (unmounts() > 0).then_some(())).await;

    let mut prepared = Box::pin(harness.prepare("next", &idle));
    assert!(tokio::time::timeout(WATCHED, &mut prepared).await.is_err(), "it does not wait");
    fs::remove_file(&held).unwrap();
    let mounts = prepared.await.unwrap();
    let mounted = harness.mount(&mounts, "next");
    assert_eq!(fs::read_to_string(mounted.path().join("hello")).unwrap(), "idle");
    // The one that a container uses stayed.
    assert_eq!((node.mount_requests(), unmounts()), (3, 1));
}
