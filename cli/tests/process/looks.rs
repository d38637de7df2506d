//! Many who look at the daemon at once: each sees all that it serves. A snapshotter that starts again detaches what is not among that.

use std::process::Stdio;

use rafs::build::BuildOptions;
use test_support::{closed_pipe, noise};

use crate::can_mount;
use crate::node::{Node, Process};

/// Mounts, who look, and how often each does.
const MOUNTS: usize = 3;
const LOOKERS: usize = 4;
const LOOKS: usize = 50;

#[test]
fn who_looks_at_the_mounts_hides_none_from_others_who_do() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    // So many chunks that counting those that are there takes a while.
    let options = BuildOptions { chunk_size: 4096, ..BuildOptions::default() };
    let image = node.image_of("i", &[("file", &noise(60, 20_000_000))], &options);
    let _daemon = Process::spawn(node.daemon_command().stdout(Stdio::null()).stderr(Stdio::null()));
    node.daemon().wait();
    let ids: Vec<String> = (0..MOUNTS).map(|number| format!("i{number}")).collect();
    for id in &ids {
        node.daemon().mount(id, &image);
    }
    std::thread::scope(|scope| {
        for _ in 0..LOOKERS {
            scope.spawn(|| {
                for _ in 0..LOOKS {
                    let mounts = node.daemon().mounts();
                    assert!(mounts.iter().map(|mount| &mount.id).eq(&ids), "{mounts:?}");
                }
            });
        }
    });
}

#[test]
fn who_looks_and_is_not_read_ends_quietly() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let _daemon = Process::spawn(node.daemon_command().stdout(Stdio::null()).stderr(Stdio::null()));
    node.daemon().wait();
    for arguments in [
        &["cache", "ls"][..],
        &["cache", "ls", "--json"],
        &["cache", "prune"],
        &["node", "status"],
        &["node", "status", "--json"],
    ] {
        let mut command = node.role(arguments);
        command.arg("--socket").arg(node.path("daemon.sock")).stdout(closed_pipe());
        let output = command.output().unwrap();
        assert_eq!((output.status.code(), output.stderr.len()), (Some(141), 0), "{arguments:?}: {output:?}");
    }
}
