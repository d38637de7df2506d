//! What daemon and worker take of the machine's memory when nobody reads.

use std::fs;
use std::process::Stdio;

use test_support::noise;

use crate::node::{Node, Process};
use crate::{can_mount, eventually};

const MOUNTS: u64 = 20;

/// What both may take, in kilobytes: so much, and so much for each mount.
const LIMIT_KB: u64 = 30_000 + 1_000 * MOUNTS;

/// Anonymous and shared memory of a process in kilobytes. Mapped files are the page cache's.
fn memory_kb(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kibibytes = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    (kibibytes("RssAnon:") + kibibytes("RssShmem:")) * 1024 / 1000
}

#[test]
fn twenty_idle_mounts_take_thirty_megabytes_and_one_each() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let mut daemon = Process::spawn(node.daemon_command().stdout(Stdio::null()).stderr(Stdio::null()));
    node.daemon().wait();
    for number in 0..MOUNTS {
        let name = format!("i{number}");
        let contents: Vec<_> = (0..8).map(|file| noise(100 * number + file, 200_000)).collect();
        let names: Vec<_> = (0..contents.len()).map(|file| format!("f{file}")).collect();
        let files: Vec<_> =
            names.iter().map(String::as_str).zip(contents.iter().map(Vec::as_slice)).collect();
        let image = node.image(&name, &files);
        let place = node.daemon().mount(&name, &image);
        for (file, content) in files {
            assert!(fs::read(place.join(file)).unwrap() == content);
        }
    }
    let worker = node.daemon().worker().pid.unwrap();
    let both = [daemon.0.id(), worker];
    let mut least = u64::MAX;
    // What reading took is given back once nobody has read for a while.
    eventually(&format!("at most {LIMIT_KB} kB are taken"), || {
        let taken: u64 = both.map(memory_kb).iter().sum();
        if taken < least {
            least = taken;
            eprintln!("{taken} kB");
        }
        (taken <= LIMIT_KB).then_some(())
    });
    assert!(daemon.running());
}
