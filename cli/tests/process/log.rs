//! Nobody reads the log, or nobody does any more.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use test_support::noise;

use crate::node::{Node, Process};
use crate::{can_mount, eventually};

/// A pipe whose buffer is full: the next write blocks.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    nix::unistd::write(&writer, &[b'\n'; 4096]).unwrap();
    (reader, writer)
}

fn with_log(mut command: Command, log: OwnedFd) -> Process {
    Process::spawn(command.args(["--log-level", "debug"]).stdout(log.try_clone().unwrap()).stderr(log))
}

#[test]
fn a_daemon_serves_all_mounts_after_the_reader_of_its_log_is_gone() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let content = noise(1, 300_000);
    let (good, bad) =
        (node.image("good", &[("f", &content)]), node.image("bad", &[("f", &noise(2, 300_000))]));
    bad.corrupt();
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let mut daemon = with_log(node.daemon_command(), writer);
    node.daemon().wait();
    let (good, bad) = (node.daemon().mount("good", &good), node.daemon().mount("bad", &bad));
    drop(reader);
    // Each logs a line, the first of which ended the process once.
    for _ in 0..3 {
        assert_eq!(fs::read(bad.join("f")).unwrap_err().raw_os_error(), Some(nix::libc::EIO));
    }
    assert!(fs::read(good.join("f")).unwrap() == content);
    assert!(daemon.running());
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().success());
}

#[test]
fn a_daemon_serves_all_mounts_while_nobody_reads_its_log() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let content = noise(3, 300_000);
    let (good, bad) =
        (node.image("good", &[("f", &content)]), node.image("bad", &[("f", &noise(4, 300_000))]));
    bad.corrupt();
    let (_reader, writer) = full_pipe();
    let mut daemon = with_log(node.daemon_command(), writer);
    node.daemon().wait();
    let (good, bad) = (node.daemon().mount("good", &good), node.daemon().mount("bad", &bad));
    assert_eq!(fs::read(bad.join("f")).unwrap_err().raw_os_error(), Some(nix::libc::EIO));
    assert!(fs::read(good.join("f")).unwrap() == content);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().success());
}

#[test]
fn a_snapshotter_obeys_sigterm_whatever_became_of_its_log() {
    if !can_mount() {
        return;
    }
    for reads in [true, false] {
        let node = Node::new();
        let (reader, writer) = full_pipe();
        // Gone altogether, or there and not reading.
        let _reader = reads.then_some(reader);
        let mut snapshotter = with_log(node.snapshotter_command(), writer);
        let socket = node.path("snapshotter.sock");
        eventually("the snapshotter listens", || UnixStream::connect(&socket).ok());
        snapshotter.signal(Signal::SIGTERM);
        assert!(snapshotter.ended().success());
        assert!(!socket.exists());
    }
}
