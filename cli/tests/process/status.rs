//! `node status`: what a daemon serves, has, and waits for.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use fuse_daemon::control::BackendSpec;
use serde_json::Value;
use test_support::noise;

use crate::node::{Node, Process};
use crate::{can_mount, eventually};

const QUOTA: u64 = 10_000_000;

/// What `node status` says with these arguments.
fn said(node: &Node, arguments: &[&str]) -> String {
    let mut command = node.role(&[&["node", "status"], arguments].concat());
    command.arg("--socket").arg(node.path("daemon.sock"));
    let output = command.arg("--snapshotter-socket").arg(node.path("none.sock")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn status(node: &Node) -> Value {
    serde_json::from_str(&said(node, &["--json"])).unwrap()
}

#[test]
fn what_programs_wait_for_is_told_with_how_long_and_why() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let config = format!("[daemon]\ncache_quota_bytes = {QUOTA}\n[daemon.read]\ndeadline_seconds = 5\n");
    fs::write(node.path("config.toml"), config).unwrap();
    let sound = noise(81, 100_000);
    let image = node.image("sound", &[("f", &sound)]);
    let damaged = node.image("damaged", &[("f", &noise(82, 100_000))]);
    damaged.corrupt();
    // Takes connections, and is silent.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let repository = format!("{}/damaged", silent.local_addr().unwrap());
    let backends =
        vec![BackendSpec::of_image(&damaged.reference).unwrap(), BackendSpec::Registry { repository }];
    let _daemon = Process::spawn(node.daemon_command().stdout(Stdio::null()).stderr(Stdio::null()));
    node.daemon().wait();
    let place = node.daemon().mount("sound", &image);
    assert!(fs::read(place.join("f")).unwrap() == sound);
    let idle = eventually("its worker is ready", || {
        let status = status(&node);
        status["worker"]["pid"].is_u64().then_some(status)
    });
    assert_eq!(idle["waiting"], Value::Array(Vec::new()));
    assert_eq!((&idle["cache"]["blobs"], &idle["cache"]["quota_bytes"]), (&1.into(), &QUOTA.into()));
    let bytes = idle["cache"]["bytes"].as_u64().unwrap();
    assert!(bytes >= sound.len() as u64 && bytes < QUOTA, "{idle}");
    let table = said(&node, &[]);
    assert!(
        table.contains(&format!("\ncache: 1 blobs, {bytes} bytes on disk, of {QUOTA} that it may take\n"))
    );
    assert!(
        table
            .contains(&format!("\nworker: process {}, replaced 0 times, guards: all", idle["worker"]["pid"]))
    );
    assert!(!table.contains("WAITED FOR"), "{table}");

    let place = node.daemon().try_mount_from("damaged", &damaged, backends).unwrap();
    let mut reader = Process::spawn(
        Command::new("cat")
            .arg(place.join("f"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    let waiting = |node: &Node| {
        let first = status(node)["waiting"][0].clone();
        (first["refused"].is_string() && first["readers"].as_u64()? > 0).then_some(first)
    };
    let first = eventually("the reader is said to wait", || waiting(&node));
    let blob = node.daemon().mounts().into_iter().find(|mount| mount.id == "damaged").unwrap().blobs[0];
    assert_eq!((&first["blob"], &first["chunk"]), (&blob.to_string().into(), &0.into()));
    let refused = first["refused"].as_str().unwrap().to_owned();
    let damaged_repository = damaged.reference.trim_end_matches(":v1");
    assert!(refused.starts_with(&format!("from repository {damaged_repository}: ")), "{refused}");
    let table = said(&node, &[]);
    let line = table.lines().find(|line| line.starts_with(&blob.to_string())).unwrap();
    assert!(table.contains("WAITED FOR") && line.ends_with(&refused), "{table}");
    let since = first["since_ms"].as_u64().unwrap();
    eventually("its wait gets longer", || {
        waiting(&node).filter(|first| first["since_ms"].as_u64().unwrap() > since)
    });
    // Its time is over: nobody waits any longer.
    assert!(!reader.ended().success());
    eventually("nobody is said to wait", || {
        status(&node)["waiting"].as_array().unwrap().is_empty().then_some(())
    });
}
