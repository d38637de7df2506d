//! `node status`: what a daemon serves, has, and waits for.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use fuse_daemon::control::BackendSpec;
use registry::server::ServerConfig;
use serde_json::Value;
use test_support::noise;
use tokio_util::sync::CancellationToken;

use crate::node::{Node, Process, bound};
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

pub(crate) fn status(node: &Node) -> Value {
    serde_json::from_str(&said(node, &["--json"])).unwrap()
}

#[test]
fn what_programs_wait_for_is_told_with_how_long_and_why() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let config = format!("[daemon]\ncache_quota_bytes = {QUOTA}\n[daemon.read]\ndeadline_seconds = 15\n");
    fs::write(node.path("config.toml"), config).unwrap();
    let sound = noise(81, 100_000);
    let image = node.image("sound", &[("f", &sound)]);
    let damaged = node.image("damaged", &[("f", &noise(82, 100_000))]);
    damaged.corrupt();
    // Takes connections, and is silent.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_repository = format!("{}/damaged", silent.local_addr().unwrap());
    let repository = silent_repository.clone();
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
    // First those that do not answer; one that delivers what it should not does.
    let silent_first = eventually("its other source is said to be silent", || {
        let sources = status(&node)["sources"].clone();
        (sources[0]["state"] == "silent").then_some(sources)
    });
    assert_eq!(silent_first[0]["backend"]["registry"]["repository"], silent_repository);
    assert!(silent_first[0]["silent_ms"].as_u64().unwrap() > 0, "{silent_first}");
    assert_eq!(source(&silent_first, damaged_repository)["state"], "answers");
    let table = said(&node, &[]);
    assert!(table.contains("\nSOURCE ") && table.contains("  nothing has come for "), "{table}");
    let since = first["since_ms"].as_u64().unwrap();
    eventually("its wait gets longer", || {
        waiting(&node).filter(|first| first["since_ms"].as_u64().unwrap() > since)
    });
    // Its time is over: nobody waits any longer.
    assert!(!reader.ended().success());
    eventually("nobody is said to wait, and the source to have failed", || {
        let status = status(&node);
        let failed = source(&status["sources"], &silent_repository)["state"] == "fails";
        (failed && status["waiting"].as_array().unwrap().is_empty()).then_some(())
    });
}

/// What is said of the source with this repository.
fn source<'a>(sources: &'a Value, repository: &str) -> &'a Value {
    let is_it = |source: &&Value| source["backend"]["registry"]["repository"] == repository;
    sources.as_array().unwrap().iter().find(is_it).unwrap_or(&Value::Null)
}

#[test]
fn of_two_sources_the_dead_one_is_told_with_its_error_until_it_answers() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let retries = "[registry.retries]\nattempts = 2\nfirst_delay_seconds = 0.05\n";
    fs::write(node.path("config.toml"), format!("{retries}[daemon.read]\ndeadline_seconds = 20\n")).unwrap();
    let content = noise(83, 300_000);
    let image = node.image("app", &[("f", &content)]);
    let living = image.reference.trim_end_matches(":v1").to_owned();
    // Nobody listens there, until a registry does.
    let bound = bound();
    let address = bound.local_addr().unwrap();
    let dead = format!("{address}/app");
    let backends =
        [&dead, &living].map(|repository| BackendSpec::Registry { repository: repository.clone() });
    let _daemon = Process::spawn(node.daemon_command().stdout(Stdio::null()).stderr(Stdio::null()));
    node.daemon().wait();
    let place = node.daemon().try_mount_from("app", &image, backends.to_vec()).unwrap();
    assert!(fs::read(place.join("f")).unwrap() == content);

    let sources = eventually("the dead one is said to fail", || {
        let sources = status(&node)["sources"].clone();
        (source(&sources, &dead)["state"] == "fails").then_some(sources)
    });
    assert_eq!(sources.as_array().unwrap().len(), 2, "{sources}");
    assert_eq!(sources[0]["backend"]["registry"]["repository"], dead, "it is told first");
    let failed = source(&sources, &dead);
    assert!(failed["failures"].as_u64().unwrap() > 0 && failed["answered_ago_ms"].is_null(), "{failed}");
    let reason = failed["failed"]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains(&address.to_string()), "{reason}");
    let answers = source(&sources, &living);
    assert_eq!((&answers["state"], &answers["failures"]), (&"answers".into(), &0.into()), "{answers}");
    assert!(answers["bytes"].as_u64().unwrap() >= content.len() as u64, "{answers}");
    let table = said(&node, &[]);
    let line = table.lines().position(|line| line.starts_with(&format!("repository {dead} "))).unwrap();
    let lines: Vec<&str> = table.lines().skip(line).collect();
    assert!(lines[0].contains("  fails  ") && lines[1].trim_start().starts_with("failed "), "{table}");

    let mut config = ServerConfig::new(node.path("other-registry"));
    config.listen.set_port(address.port());
    let stop = CancellationToken::new();
    let _other = node.runtime.block_on(registry::server::serve(config, stop.clone())).unwrap();
    let _stop = stop.drop_guard();
    node.push(&dead, &image);
    // Another image from there has it asked again.
    let place = node.daemon().try_mount_from("other", &image, backends[..1].to_vec()).unwrap();
    assert!(fs::read(place.join("f")).unwrap() == content);
    let recovered = eventually("it is said to answer", || {
        let recovered = source(&status(&node)["sources"], &dead).clone();
        (recovered["state"] == "answers").then_some(recovered)
    });
    assert!(recovered["failed"]["reason"].is_string(), "what was wrong is still told: {recovered}");
    let (answered, failed) = (&recovered["answered_ago_ms"], &recovered["failed"]["ago_ms"]);
    assert!(answered.as_u64() <= failed.as_u64(), "{recovered}");
    node.daemon().unmount("other");
    node.daemon().unmount("app");
    assert_eq!(status(&node)["sources"], Value::Array(Vec::new()), "nothing is read from anywhere");
}
