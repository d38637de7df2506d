//! A cache that is nearly full: images that no container uses are unmounted.

use std::fs::{self, File};
use std::time::Duration;

use fuse_daemon::control::protocol::Request;

use crate::fake_daemon::{self, Bootstrap};
use crate::harness::{Harness, eventually};
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

/// The images that were unmounted, in order.
fn unmounted(node: &Node) -> Vec<String> {
    let requests = node.requests();
    let image = |id: &String| {
        let of = requests.iter().find_map(|request| match request {
            Request::Mount(mount) if mount.id == *id => Some(mount.image.clone()),
            _ => None,
        });
        of.unwrap()
    };
    let gone = requests.iter().filter_map(|request| match request {
        Request::Umount { id } => Some(image(id)),
        _ => None,
    });
    gone.collect()
}

#[tokio::test]
async fn of_several_idle_images_those_used_longest_ago_go_until_there_is_room() {
    needs_root!();
    let node = Node::start().await;
    let harness = &node.harness;
    let mut uppers = Vec::new();
    for (name, digit) in [("a", '1'), ("b", '2'), ("c", '3'), ("d", '4'), ("used", '5')] {
        uppers.push(node.pull(name, digit, &node.content(name)).await);
    }
    let [a, b, c, d, used] = &uppers[..] else { panic!("five images") };
    harness.prepare("stays", used).await.unwrap();
    // Twice, so that neither the first use of each nor the order of pulls is the one that counts.
    for (round, images) in [[a, b, c, d], [c, a, d, b]].into_iter().enumerate() {
        for image in images {
            let key = format!("{image}-{round}");
            harness.prepare(&key, image).await.unwrap();
            harness.remove(&key).await.unwrap();
        }
    }
    assert_eq!(node.mount_requests(), 5);
    fake_daemon::fill(harness.dir.path());
    // The second look after the last one is of another round.
    let has_looked_again = |looks: Vec<u64>| {
        looks.iter().filter(|unmounted| **unmounted >= fake_daemon::IMAGES_FOR_ROOM).count() > 1
    };
    let looks = || fake_daemon::looks(harness.dir.path());
    while !has_looked_again(looks()) {
        let seen = looks().len();
        eventually("the cache is looked at", async || (looks().len() > seen).then_some(())).await;
    }
    assert_eq!(unmounted(&node), ["c", "a"]);
}

#[tokio::test]
async fn a_daemon_that_does_not_say_what_may_give_way_is_served_too() {
    needs_root!();
    let harness = Harness::start_with(|dir, config| {
        fake_daemon::be_old(dir);
        config.daemon = fake_daemon::config(dir);
    })
    .await;
    let node = Node { harness };
    let harness = &node.harness;
    let (used, idle) = (node.content("used"), node.content("idle"));
    let (used, idle) = (node.pull("used", '1', &used).await, node.pull("idle", '2', &idle).await);
    for (key, image) in [("stays", &used), ("ends", &idle)] {
        harness.prepare(key, image).await.unwrap();
    }
    harness.remove("ends").await.unwrap();
    fake_daemon::fill(harness.dir.path());
    eventually("what is idle is unmounted", async || (unmounted(&node) == ["idle"]).then_some(())).await;
}
