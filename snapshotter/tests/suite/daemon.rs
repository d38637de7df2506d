//! The daemon's life beside the service's.

use std::fs;
use std::path::PathBuf;
use std::pin::pin;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getsid};
use tokio::time::timeout;
use tonic::Code;

use crate::fake_daemon::Bootstrap;
use crate::harness::{Harness, SOON, code, eventually};
use crate::needs_root;
use crate::nydus::Node;

/// A bootstrap that is neither mounted nor unmounted as long as the file is there.
fn held(node: &Node, name: &str) -> (Bootstrap, PathBuf) {
    let hold = node.harness.dir.path().join(format!("hold-{name}"));
    (Bootstrap { held_by: Some(hold.clone()), ..node.content(name) }, hold)
}

#[tokio::test]
async fn the_daemon_outlives_the_service_and_is_found_again() {
    needs_root!();
    let mut node = Node::start().await;
    let upper = node.pull("r/i:1", 'a', &node.content("i")).await;
    let mounts = node.harness.prepare("container", &upper).await.unwrap();
    let pid = node.daemon_pid().await;
    let session = getsid(Some(Pid::from_raw(pid.try_into().unwrap()))).unwrap();
    assert_ne!(session, getsid(None).unwrap(), "it must not end with our terminal");
    let mounted = node.harness.mount(&mounts, "container");
    node.harness.stop().await;
    assert_eq!(fs::read(mounted.path().join("hello")).unwrap(), b"i");
    node.harness.restart_after_stop().await;
    assert_eq!(fs::read(mounted.path().join("hello")).unwrap(), b"i");
    assert_eq!(node.harness.mounts("container").await.unwrap(), mounts);
    node.harness.prepare("another", &upper).await.unwrap();
    assert_eq!(node.daemon_pid().await, pid);
}

#[tokio::test]
async fn a_daemon_that_dies_is_replaced_and_images_in_use_are_mounted_again() {
    needs_root!();
    let node = Node::start().await;
    let used = node.pull("r/used:1", 'a', &node.content("used")).await;
    let idle = node.pull("r/idle:1", 'b', &node.content("idle")).await;
    let mounts = node.harness.prepare("container", &used).await.unwrap();
    node.harness.prepare("short", &idle).await.unwrap();
    node.harness.remove("short").await.unwrap();
    assert_eq!(node.mount_requests(), 2);
    let first = node.daemon_pid().await;
    kill(Pid::from_raw(first.try_into().unwrap()), Signal::SIGKILL).unwrap();
    // Nobody asks for it: the image in use comes back by itself, and only that.
    eventually("the image is mounted again", async || (node.mount_requests() == 3).then_some(())).await;
    assert_ne!(node.daemon_pid().await, first);
    assert_eq!(node.harness.mounts("container").await.unwrap(), mounts);
    assert_eq!(node.mount_requests(), 3);
    // What the dead daemon had mounted was detached first.
    let text = fs::read_to_string("/proc/self/mounts").unwrap();
    let lower = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
    assert_eq!(text.lines().filter(|line| line.split(' ').nth(1) == Some(lower)).count(), 1);
    node.harness.prepare("other", &idle).await.unwrap();
    assert_eq!(node.mount_requests(), 4);
}

#[tokio::test]
async fn requests_are_answered_while_mounts_are_restored() {
    needs_root!();
    let node = Node::start().await;
    let (slow, hold) = held(&node, "slow");
    let upper = node.pull("r/slow:1", 'a', &slow).await;
    let mounts = node.harness.prepare("container", &upper).await.unwrap();
    fs::write(&hold, "").unwrap();
    let pid = node.daemon_pid().await;
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    eventually("the image is being mounted again", async || (node.mount_requests() == 2).then_some(())).await;
    let answered = async {
        node.harness.prepare("plain", "").await.unwrap();
        node.harness.stat("container").await.unwrap();
    };
    timeout(SOON, answered).await.expect("who needs no image waits for none");
    // Who needs the image joins the mount that is under way.
    let (joined, ()) =
        tokio::join!(node.harness.mounts("container"), async { fs::remove_file(&hold).unwrap() });
    assert_eq!(joined.unwrap(), mounts);
    assert_eq!(node.mount_requests(), 2);
}

#[tokio::test]
async fn a_clean_up_that_waits_for_the_daemon_holds_nobody_up() {
    needs_root!();
    let node = Node::start().await;
    let (slow, hold) = held(&node, "slow");
    let slow = node.pull("r/slow:1", 'a', &slow).await;
    let other = node.pull("r/other:1", 'b', &node.content("other")).await;
    node.harness.prepare("short", &slow).await.unwrap();
    fs::write(&hold, "").unwrap();
    node.harness.remove("short").await.unwrap();
    node.harness.remove(&slow).await.unwrap();
    let mut cleaning = pin!(node.harness.cleanup());
    let used = async {
        node.harness.prepare("container", &other).await.unwrap();
        node.harness.prepare("plain", "").await.unwrap();
        node.harness.remove("plain").await.unwrap();
    };
    tokio::select! {
        done = timeout(SOON, used) => done.expect("nobody waits for the clean-up"),
        cleaned = &mut cleaning => panic!("the clean-up did not wait: {cleaned:?}"),
    }
    fs::remove_file(&hold).unwrap();
    cleaning.await.unwrap();
    node.harness.mounts("container").await.unwrap();
}

/// Unpacks a nydus image's bootstrap as the snapshot `boot`.
async fn unpack_image(harness: &Harness) {
    let labels = [
        ("containerd.io/snapshot/nydus-bootstrap", "true"),
        ("containerd.io/snapshot.ref", "sha256:chain"),
        ("containerd.io/snapshot/cri.image-ref", "r/i:1"),
    ];
    let mounts = harness.prepare_with("boot-a", "", &labels).await.unwrap();
    let image = std::path::PathBuf::from(&mounts[0].source).join("image");
    fs::create_dir(&image).unwrap();
    fs::write(image.join("image.boot"), "{}").unwrap();
    harness.commit_with("boot", "boot-a", &labels).await.unwrap();
}

#[tokio::test]
async fn the_socket_answers_while_there_is_no_daemon() {
    let harness = Harness::start_with(|dir, config| {
        config.daemon.socket = dir.join("daemon.sock").try_into().unwrap();
        // Starts, and never answers.
        config.daemon.command = Some("/bin/sleep".into());
        config.daemon.args = vec!["120".to_owned()];
        config.daemon.ready_timeout_seconds = 600;
        config.mount_timeout_seconds = 1;
    })
    .await;
    harness.prepare("plain", "").await.unwrap();
    unpack_image(&harness).await;
    let refused =
        timeout(SOON, harness.prepare("container", "boot")).await.expect("nobody waits for the daemon");
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("daemon"), "{refused}");
    // Nothing of this needs a daemon.
    harness.remove("boot").await.unwrap();
    harness.cleanup().await.unwrap();
    assert_eq!(code(harness.stat("boot").await), Code::NotFound);
    assert_eq!(harness.directories().len(), 1);
}

#[tokio::test]
async fn a_daemon_that_cannot_start_is_named_in_the_error() {
    let harness = Harness::start_with(|dir, config| {
        config.daemon.socket = dir.join("daemon.sock").try_into().unwrap();
        config.daemon.command = Some("/nonexistent/daemon".into());
        config.mount_timeout_seconds = 1;
    })
    .await;
    unpack_image(&harness).await;
    // On a busy machine it has not been tried within the time of the first one who asks.
    eventually("the program is named", async || {
        let refused = harness.prepare("container", "boot").await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        refused.message().contains("/nonexistent/daemon").then_some(())
    })
    .await;
}
