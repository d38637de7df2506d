//! Mounts that outlive their daemon, since the service holds their descriptors.

use std::fs;
use std::path::Path;
use std::time::Duration;

use fuse_daemon::control::protocol::Request;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fake_daemon::{self, Bootstrap};
use crate::harness::eventually;
use crate::needs_root;
use crate::nydus::Node;

/// How long others may wait for one that is being taken over: less than the service gives a daemon for that.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a daemon was asked for, in order; what frees the cache left out.
fn asked(node: &Node) -> Vec<&'static str> {
    let name = |request: &Request| match request {
        Request::Mount(_) => Some("mount"),
        Request::Umount { .. } => Some("umount"),
        Request::Handover { .. } => Some("handover"),
        Request::Adopt(_) => Some("adopt"),
        _ => None,
    };
    node.requests().iter().filter_map(name).collect()
}

async fn wait_until_asked(node: &Node, expected: &[&str]) {
    eventually("the daemon is asked for all that", async || (asked(node) == expected).then_some(())).await;
}

pub(crate) async fn kill_daemon(node: &Node) {
    let pid = node.daemon_pid().await;
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    eventually("another daemon answers", async || (node.daemon_pid().await != pid).then_some(())).await;
}

/// Gives the only image's mount a mark, which another one in its place would not have.
pub(crate) fn mark(node: &Node) {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC;
    mount(None::<&str>, &node.mountpoint(), None::<&str>, flags, None::<&str>).unwrap();
}

/// Whether the only image's mount is the one that was marked.
fn is_marked(node: &Node) -> bool {
    is_marked_at(&node.mountpoint())
}

pub(crate) fn is_marked_at(place: &Path) -> bool {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let fields = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found: Vec<_> = fields.filter(|fields| fields[4] == place.to_str().unwrap()).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0][5].contains("noexec")
}

async fn wait_until_released(node: &Node) {
    let id = mount_id(node);
    eventually("it is released", async || {
        (!fake_daemon::is_held(node.harness.dir.path(), &id)).then_some(())
    })
    .await;
}

/// The only mount's id in the daemon.
pub(crate) fn mount_id(node: &Node) -> String {
    let mount = node.requests().into_iter().find_map(|request| match request {
        Request::Mount(mount) => Some(mount.id),
        _ => None,
    });
    mount.expect("it was mounted")
}

pub(crate) fn lasting(node: &Node) -> Bootstrap {
    Bootstrap { hands_over: true, ..node.content("i") }
}

#[tokio::test]
async fn the_next_daemon_goes_on_with_a_mount_that_stays_in_place() {
    needs_root!();
    let mut node = Node::start().await;
    let upper = node.pull("r/i:1", 'a', &lasting(&node)).await;
    let mounts = node.harness.prepare("container", &upper).await.unwrap();
    mark(&node);
    assert!(fake_daemon::is_held(node.harness.dir.path(), &mount_id(&node)));
    let mut expected = vec!["mount", "handover"];
    wait_until_asked(&node, &expected).await;
    for _ in 0..3 {
        kill_daemon(&node).await;
        // It is adopted before anything else; what the image is read from besides is said as after each start.
        expected.extend(["adopt", "mount", "handover"]);
        wait_until_asked(&node, &expected).await;
    }
    // A service that comes later holds it again.
    node.harness.restart().await;
    expected.extend(["handover", "mount", "handover"]);
    wait_until_asked(&node, &expected).await;
    kill_daemon(&node).await;
    expected.extend(["adopt", "mount", "handover"]);
    wait_until_asked(&node, &expected).await;
    assert!(is_marked(&node), "it was mounted again");
    assert_eq!(node.harness.mounts("container").await.unwrap(), mounts);
}

#[tokio::test]
async fn a_mount_that_is_refused_for_a_while_is_adopted() {
    needs_root!();
    let node = Node::start().await;
    let content = Bootstrap { refused_adoptions: 2, ..lasting(&node) };
    let upper = node.pull("r/i:1", 'a', &content).await;
    node.harness.prepare("container", &upper).await.unwrap();
    mark(&node);
    kill_daemon(&node).await;
    let expected = ["mount", "handover", "adopt", "adopt", "adopt", "mount", "handover"];
    wait_until_asked(&node, &expected).await;
    assert!(is_marked(&node), "it was mounted again");
}

#[tokio::test]
async fn a_mount_that_no_daemon_adopts_is_let_go_and_mounted_again() {
    needs_root!();
    let node = Node::start().await;
    let content = Bootstrap { refused_adoptions: usize::MAX, refused_for_good: true, ..lasting(&node) };
    let upper = node.pull("r/i:1", 'a', &content).await;
    node.harness.prepare("container", &upper).await.unwrap();
    mark(&node);
    kill_daemon(&node).await;
    let expected = ["mount", "handover", "adopt", "adopt", "adopt", "adopt", "mount", "handover"];
    wait_until_asked(&node, &expected).await;
    assert!(!is_marked(&node));
}

#[tokio::test]
async fn a_mount_that_is_refused_for_long_stays_and_holds_up_no_other() {
    needs_root!();
    let node = Node::start().await;
    let gate = node.harness.dir.path().join("gate");
    let content = Bootstrap { refused_while: Some(gate.clone()), ..lasting(&node) };
    let upper = node.pull("r/i:1", 'a', &content).await;
    node.harness.prepare("container", &upper).await.unwrap();
    mark(&node);
    let place = node.mountpoint();
    fs::write(&gate, "").unwrap();
    kill_daemon(&node).await;
    eventually("it is asked for again and again", async || {
        (asked(&node).iter().filter(|request| **request == "adopt").count() >= 4).then_some(())
    })
    .await;
    // Others are served, and nothing is put over what programs wait for.
    let other = node.pull("r/j:1", 'b', &node.content("j")).await;
    node.harness.prepare("other", &other).await.unwrap();
    let refused = node.harness.prepare("second", &upper).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    // How often it is asked for meanwhile is a matter of time.
    let mut others = asked(&node);
    others.retain(|request| *request != "adopt");
    assert_eq!(others, ["mount", "handover", "mount", "handover"], "of either image");
    fs::remove_file(&gate).unwrap();
    eventually("it is taken over", async || node.harness.prepare("third", &upper).await.ok()).await;
    assert!(is_marked_at(&place), "it was mounted again");
}

#[tokio::test]
async fn a_mount_that_takes_long_to_be_taken_over_holds_up_no_other() {
    needs_root!();
    let node = Node::start().await;
    let gate = node.harness.dir.path().join("gate");
    let content = Bootstrap { adoption_held_by: Some(gate.clone()), ..lasting(&node) };
    let upper = node.pull("r/i:1", 'a', &content).await;
    node.harness.prepare("container", &upper).await.unwrap();
    mark(&node);
    let place = node.mountpoint();
    // As where its registry is needed, and does not answer.
    fs::write(&gate, "").unwrap();
    kill_daemon(&node).await;
    let other = node.pull("r/j:1", 'b', &node.content("j")).await;
    tokio::time::timeout(PATIENCE, node.harness.prepare("other", &other)).await.expect("it waits").unwrap();
    fs::remove_file(&gate).unwrap();
    eventually("the first one is served", async || node.harness.prepare("second", &upper).await.ok()).await;
    assert!(is_marked_at(&place), "it was mounted again");
}

#[tokio::test]
async fn a_mount_that_is_just_being_taken_over_when_a_service_comes_stays_in_place() {
    needs_root!();
    let mut node = Node::start().await;
    let gate = node.harness.dir.path().join("gate");
    let content = Bootstrap { adoption_held_by: Some(gate.clone()), ..lasting(&node) };
    let upper = node.pull("r/i:1", 'a', &content).await;
    node.harness.prepare("container", &upper).await.unwrap();
    mark(&node);
    fs::write(&gate, "").unwrap();
    kill_daemon(&node).await;
    let mut expected = vec!["mount", "handover", "adopt"];
    wait_until_asked(&node, &expected).await;
    // Who asked for it is gone before the answer.
    node.harness.restart().await;
    let client = fuse_daemon::control::Client::new(node.harness.config.daemon.socket.path());
    let id = mount_id(&node);
    eventually("the daemon says that it comes", async || {
        client.status().await.ok().filter(|status| status.coming == [id.clone()])
    })
    .await;
    fs::remove_file(&gate).unwrap();
    expected.extend(["handover", "mount", "handover"]);
    wait_until_asked(&node, &expected).await;
    assert!(is_marked(&node), "it was mounted again");
}

#[tokio::test]
async fn whoever_kills_daemons_while_they_take_a_mount_over_does_not_end_it() {
    needs_root!();
    let node = Node::start().await;
    let content = Bootstrap { fatal_adoptions: 6, killed: true, ..lasting(&node) };
    let upper = node.pull("r/i:1", 'a', &content).await;
    node.harness.prepare("container", &upper).await.unwrap();
    mark(&node);
    kill_daemon(&node).await;
    let mut expected = vec!["mount", "handover"];
    expected.extend(["adopt"; 7]);
    expected.extend(["mount", "handover"]);
    wait_until_asked(&node, &expected).await;
    assert!(is_marked(&node), "it was mounted again");
}

#[tokio::test]
async fn a_mount_is_held_while_daemons_end_over_it_but_not_for_ever() {
    needs_root!();
    for (fatal, again) in [(4, false), (usize::MAX, true)] {
        let node = Node::start().await;
        let content = Bootstrap { fatal_adoptions: fatal, ..lasting(&node) };
        let upper = node.pull("r/i:1", 'a', &content).await;
        node.harness.prepare("container", &upper).await.unwrap();
        mark(&node);
        kill_daemon(&node).await;
        let expected =
            ["mount", "handover", "adopt", "adopt", "adopt", "adopt", "adopt", "mount", "handover"];
        wait_until_asked(&node, &expected).await;
        assert_eq!(!is_marked(&node), again);
    }
}

#[tokio::test]
async fn what_is_unmounted_is_released() {
    needs_root!();
    let node = Node::start().await;
    let upper = node.pull("r/i:1", 'a', &lasting(&node)).await;
    node.harness.prepare("container", &upper).await.unwrap();
    assert!(fake_daemon::is_held(node.harness.dir.path(), &mount_id(&node)));
    node.harness.remove("container").await.unwrap();
    node.harness.remove(&upper).await.unwrap();
    node.harness.cleanup().await.unwrap();
    wait_until_released(&node).await;
    kill_daemon(&node).await;
    // Nothing is mounted, so nothing is asked for.
    assert_eq!(asked(&node), ["mount", "handover", "umount"]);
}
