//! An operating system that gives no more.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use fuse_daemon::control::protocol::ErrorKind;
use fuse_daemon::control::{ClientError, Handover, MountStatus};
use test_support::{Need, has, noise};

use crate::kill::{answered_by_the_next, keep_journals};
use crate::node::{Node, Process};
use crate::{can_mount, eventually};

#[test]
fn without_descriptors_a_mount_is_an_error_and_whoever_touches_it_goes_on() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let image = node.image("i", &[("f", &noise(1, 100_000))]);
    let command = node.daemon_command();
    // Both limits, so that the daemon cannot raise its own.
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -n 20; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    let _daemon = Process::spawn(limited.stdin(Stdio::null()).stderr(Stdio::null()));
    node.daemon().wait();
    let (mut mounted, mut refused) = (0, 0);
    // The daemon has descriptors for some: at the latest after these it has none.
    for number in 0..10 {
        let id = format!("m{number}");
        let outcome = node.daemon().try_mount(&id, &image);
        let place = node.path("mnt").join(&id);
        let touched =
            Command::new("timeout").args(["20", "stat", "--file-system"]).arg(&place).output().unwrap();
        assert_ne!(touched.status.code(), Some(124), "{} hangs", place.display());
        match outcome {
            Ok(_) => mounted += 1,
            Err(error) => {
                refused += 1;
                // Not a bad image, which nobody would try again.
                let failed = matches!(&error, ClientError::Reported { kind: ErrorKind::Failed, message, .. } if message.contains("open files"));
                assert!(failed, "{error:?}");
                let served: Vec<MountStatus> = node.daemon().mounts();
                assert!(served.iter().all(|mount| mount.id != id), "{served:?}");
                let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
                assert!(!mounts.contains(place.to_str().unwrap()), "it is not left there: {mounts}");
            }
        }
    }
    assert!(refused > 0, "{mounted} mounts fit");
}

/// A cgroup that says how many threads its processes may have. Gone when dropped.
struct Threads(PathBuf);

impl Threads {
    /// Where the machine counts threads by cgroups.
    fn counted() -> Option<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mut places = fields.filter(|fields| fields[2].starts_with("cgroup"));
        places.find_map(|fields| {
            let place = PathBuf::from(fields[1]);
            let controllers = fs::read_to_string(place.join("cgroup.subtree_control")).unwrap_or_default();
            let is_first_version =
                fields[2] == "cgroup" && fields[3].split(',').any(|option| option == "pids");
            (is_first_version || controllers.split_whitespace().any(|name| name == "pids")).then_some(place)
        })
    }

    fn of(process: &Process) -> Self {
        let place = Self::counted().unwrap().join(format!("nydus-cluster-test-{}", process.0.id()));
        fs::create_dir(&place).unwrap();
        fs::write(place.join("cgroup.procs"), process.0.id().to_string()).unwrap();
        Self(place)
    }

    /// So many more than there are.
    fn allow(&self, more: usize) {
        let now: usize = fs::read_to_string(self.0.join("pids.current")).unwrap().trim().parse().unwrap();
        fs::write(self.0.join("pids.max"), (now + more).to_string()).unwrap();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Where the first version is, processes go back to the root.
        let root = self.0.parent().unwrap().join("cgroup.procs");
        for process in fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(&root, process);
        }
        eventually("the cgroup is empty", || fs::remove_dir(&self.0).ok());
    }
}

/// Has a daemon take over a mount that may start no thread at first, and one more each time.
fn adopt_without_threads(node: &Node, daemon: &Process, handover: &Handover, descriptor: &OwnedFd) {
    let threads = Threads::of(daemon);
    let mut refused = 0;
    for more in 1.. {
        threads.allow(more);
        match node.daemon().adopt(handover, descriptor) {
            Ok(()) => break,
            Err(error) => {
                assert!(more < 20, "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
}

#[test]
fn a_mount_whose_threads_cannot_be_started_is_as_it_was_for_another_attempt() {
    if !can_mount() || !has(&[Need::Other("cgroups that count threads", Threads::counted().is_some())]) {
        return;
    }
    answered_by_the_next(&Node::new(), adopt_without_threads);
    let node = Node::new();
    keep_journals(&node);
    answered_by_the_next(&node, adopt_without_threads);
}
