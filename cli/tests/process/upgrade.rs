//! The daemon makes place for another program, which takes over while everybody reads.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use test_support::write_program;

use crate::load::{Load, files};
use crate::node::{Node, Process};
use crate::{can_mount, eventually};

/// Puts a program at a place as an installation does: whoever runs the old one goes on with that.
fn install(content: &[u8], place: &Path) {
    let temporary = place.with_extension("new");
    write_program(&temporary, content);
    fs::rename(&temporary, place).unwrap();
}

/// `nydus-cluster upgrade`: whether it succeeded, and what it says.
fn upgrade(node: &Node) -> (bool, String) {
    let socket = format!("unix://{}", node.path("daemon.sock").display());
    let output = node.role(&["upgrade", "--socket", &socket]).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn another_program_takes_over_while_programs_read_and_one_that_would_not_work_is_refused() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let files = files();
    let files: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), &content[..])).collect();
    let image = node.image("i", &files);
    let program = node.path("nydus-cluster");
    let content = fs::read(env!("CARGO_BIN_EXE_nydus-cluster")).unwrap();
    install(&content, &program);
    let start = || {
        let command = node.daemon_command();
        let mut same = Command::new(&program);
        same.args(command.get_args()).stdin(Stdio::null());
        let daemon = Process::spawn(same.stdout(Stdio::null()).stderr(Stdio::null()));
        node.daemon().wait();
        daemon
    };
    let mut daemon = start();
    let place = node.daemon().mount("i", &image);
    let (succeeded, said) = upgrade(&node);
    assert!(!succeeded && said.contains("nobody holds mounts i"), "{said}");

    let (handover, descriptor) = node.daemon().handover("i");
    let mut load = Load::start(&place);
    load.wait_for_reads(200);
    for broken in [&b"#!/bin/sh\necho not today >&2; exit 3\n"[..], b"no program"] {
        install(broken, &program);
        let (succeeded, said) = upgrade(&node);
        assert!(!succeeded && said.contains("the old one goes on"), "{said}");
        load.wait_for_reads(100);
        assert!(daemon.running());
    }
    for _ in 0..3 {
        // Another file, though with the same content.
        install(&content, &program);
        let upgrading = node.role(&["upgrade", "--socket"]);
        let mut command = Command::new(upgrading.get_program());
        command.args(upgrading.get_args()).arg(format!("unix://{}", node.path("daemon.sock").display()));
        let mut upgrading = Process::spawn(command.stdout(Stdio::null()));
        assert!(daemon.ended().success());
        // What the snapshotter does, which holds the mounts.
        daemon = start();
        node.daemon().adopt(&handover, &descriptor).unwrap();
        assert!(upgrading.ended().success());
        // Others still hold the mount, for the next.
        drop(node.daemon().handover("i"));
        load.wait_for_reads(200);
    }
    let pid = daemon.0.id();
    let runs = eventually("the daemon runs", || fs::read_link(format!("/proc/{pid}/exe")).ok());
    assert_eq!(runs, fs::canonicalize(&program).unwrap());
}
