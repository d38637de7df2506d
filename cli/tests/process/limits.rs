//! An operating system that gives no more.

use std::process::{Command, Stdio};

use fuse_daemon::control::protocol::ErrorKind;
use fuse_daemon::control::{ClientError, MountStatus};
use test_support::noise;

use crate::can_mount;
use crate::node::{Node, Process};

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
