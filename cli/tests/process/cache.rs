//! `cache`: what a daemon has cached, as the command line tells and changes it.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::{fs, str};

use rafs::bootstrap::Bootstrap;
use serde_json::Value;
use test_support::noise;

use crate::can_mount;
use crate::node::{Image, Node, Process};

/// What the command ends with when all is well, and when chunks were bad.
const SOUND: Option<i32> = Some(0);
const BAD: Option<i32> = Some(1);

impl Image {
    /// The digest of its one blob.
    fn digest(&self) -> String {
        let bootstrap = Bootstrap::open(&self.bootstrap).unwrap();
        bootstrap.blobs()[0].id.unwrap().to_string()
    }
}

/// `cache` with these arguments, asked of the node's daemon.
fn cache(node: &Node, arguments: &[&str]) -> Output {
    let mut command = node.role(&[&["cache"], arguments].concat());
    command.arg("--socket").arg(node.path("daemon.sock")).output().unwrap()
}

/// What it says, which must end with `code`.
fn said(node: &Node, arguments: &[&str], code: Option<i32>) -> String {
    let Output { status, stdout, stderr } = cache(node, arguments);
    let (stdout, stderr) = (str::from_utf8(&stdout).unwrap(), String::from_utf8_lossy(&stderr));
    assert_eq!(status.code(), code, "{arguments:?}: {stdout}{stderr}");
    stdout.to_owned()
}

/// The blob in `cache ls --json`.
fn listed(node: &Node) -> Value {
    let list: Value = serde_json::from_str(&said(node, &["ls", "--json"], SOUND)).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    list[0].clone()
}

fn data_file(node: &Node, digest: &str) -> PathBuf {
    node.path("cache").join(format!("{digest}.blob.data"))
}

#[test]
fn what_is_cached_is_listed_pinned_verified_and_pruned() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let content = noise(71, 300_000);
    let image = node.image("i", &[("f", &content)]);
    let digest = image.digest();
    let blob = format!("sha256:{digest}");
    let _daemon = Process::spawn(node.daemon_command().stdout(Stdio::null()).stderr(Stdio::null()));
    node.daemon().wait();
    assert_eq!(said(&node, &["ls", "--json"], SOUND), "[]\n");
    let place = node.daemon().mount("i", &image);
    assert!(fs::read(place.join("f")).unwrap() == content);

    let status = listed(&node);
    assert_eq!(
        (&status["blob"], &status["mounted"], &status["pinned"]),
        (&blob.as_str().into(), &true.into(), &false.into())
    );
    assert!(status["bytes"].as_u64().unwrap() >= content.len() as u64, "{status}");
    assert!(status["last_used"].as_u64().is_some(), "{status}");
    let line = |states: &str| format!("{blob}  {:>14}  {states}\n", listed(&node)["bytes"].as_u64().unwrap());
    let table = said(&node, &["ls"], SOUND);
    assert!(table.starts_with("BLOB ") && table.ends_with(&line("mounted")), "{table}");

    // By its digest with and without the algorithm's name.
    said(&node, &["pin", &digest], SOUND);
    assert_eq!(listed(&node)["pinned"], true);
    assert!(said(&node, &["ls"], SOUND).ends_with(&line("mounted, pinned")));
    node.daemon().unmount("i");
    assert!(said(&node, &["ls"], SOUND).ends_with(&line("pinned")));
    assert_eq!(said(&node, &["prune"], SOUND), "freed 0 blobs, 0 bytes\n");

    assert_eq!(said(&node, &["verify"], SOUND), "verified 5 chunks\n");
    let file = fs::OpenOptions::new().write(true).open(data_file(&node, &digest)).unwrap();
    file.write_all_at(b"something else", 70_000).unwrap();
    let bad = format!("verified 5 chunks\n{blob}: 1 chunks were bad and will be fetched again\n");
    assert_eq!(said(&node, &["verify", &blob], BAD), bad);
    assert_eq!(said(&node, &["verify", &blob], SOUND), "verified 4 chunks\n");
    let place = node.daemon().mount("i", &image);
    assert!(fs::read(place.join("f")).unwrap() == content);
    assert_eq!(said(&node, &["verify"], SOUND), "verified 5 chunks\n");
    node.daemon().unmount("i");

    said(&node, &["pin", "--undo", &blob], SOUND);
    let bytes = listed(&node)["bytes"].clone();
    assert_eq!(said(&node, &["prune"], SOUND), format!("freed 1 blobs, {bytes} bytes\n"));
    assert_eq!(said(&node, &["ls", "--json"], SOUND), "[]\n");
    assert!(!data_file(&node, &digest).exists());
    // Nobody answers for what is no digest, and no daemon for who asks at another place.
    assert_eq!(cache(&node, &["pin", "sha256:1"]).status.code(), Some(2));
    let mut elsewhere = node.role(&["cache", "ls"]);
    elsewhere.arg("--socket").arg(node.path("elsewhere.sock"));
    assert_eq!(elsewhere.output().unwrap().status.code(), Some(2));
}
