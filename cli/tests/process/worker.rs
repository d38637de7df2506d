//! The daemon's worker: a process without rights, whose end nobody notices.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::load::{Load, files};
use crate::node::{Node, Process};
use crate::{can_mount, eventually};

fn start(node: &Node) -> Process {
    let daemon = Process::spawn(node.daemon_command().stdout(Stdio::null()).stderr(Stdio::null()));
    node.daemon().wait();
    daemon
}

/// The worker's process, once it works; not `but`, which was killed.
fn worker(node: &Node, but: Option<u32>) -> u32 {
    eventually("a worker works", || node.daemon().worker().pid.filter(|pid| Some(*pid) != but))
}

fn end(pid: u32, signal: Signal) {
    match kill(Pid::from_raw(pid.try_into().unwrap()), signal) {
        // One that its daemon has just replaced is gone.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => panic!("{errno}"),
    }
}

/// A line of `/proc/PID/status`.
fn status(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn twenty_kills_of_the_worker_under_load_show_no_error_and_no_wrong_byte() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let files = files();
    let image = node
        .image("i", &files.iter().map(|(name, content)| (name.as_str(), &content[..])).collect::<Vec<_>>());
    let _daemon = start(&node);
    let mut last = None;
    for round in 0..20 {
        // Nothing of it is cached, each time.
        let place = node.daemon().mount("i", &image);
        let mut load = Load::start(&place);
        let pid = worker(&node, last);
        std::thread::sleep(Duration::from_millis(round * 3 % 17));
        end(pid, Signal::SIGKILL);
        last = Some(pid);
        load.wait_for_reads(200);
        drop(load);
        node.daemon().forget("i", &image);
    }
    assert!(node.daemon().worker().restarts >= 20);
}

#[test]
fn a_worker_that_is_stopped_is_replaced_while_readers_wait() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let content = test_support::noise(3, 300_000);
    let image = node.image("i", &[("f", &content)]);
    let _daemon = start(&node);
    let place = node.daemon().mount("i", &image);
    end(worker(&node, None), Signal::SIGSTOP);
    assert!(fs::read(place.join("f")).unwrap() == content);
}

#[test]
fn a_daemon_that_may_not_give_its_worker_another_user_says_so_and_serves() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let content = test_support::noise(4, 300_000);
    let image = node.image("i", &[("f", &content)]);
    let log = node.path("daemon.log");
    let (output, command) = (File::create(&log).unwrap(), node.daemon_command());
    let mut restricted = Command::new("setpriv");
    restricted.args(["--bounding-set", "-setuid,-setgid", "--"]);
    restricted.arg(command.get_program()).args(command.get_args());
    let _daemon =
        Process::spawn(restricted.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output));
    node.daemon().wait();
    let pid = worker(&node, None);
    assert_eq!(node.daemon().worker().guards.unwrap().missing(), ["a user of its own"]);
    // Root without a right, then, and the others hold.
    assert_eq!(status(pid, "Uid"), "0 0 0 0");
    assert_eq!(status(pid, "CapEff"), "0000000000000000");
    let logged = eventually("it is logged", || {
        let text = fs::read_to_string(&log).unwrap();
        text.lines().find(|line| line.contains("with fewer guards")).map(ToOwned::to_owned)
    });
    assert!(logged.contains("WARN") && logged.contains("a user of its own"), "{logged}");
    let mut ask = node.role(&["node", "status"]);
    ask.arg("--socket").arg(node.path("daemon.sock"));
    let said = ask.arg("--snapshotter-socket").arg(node.path("none.sock")).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.ends_with("guards: all but: a user of its own\n"), "{said}");
    let place = node.daemon().mount("i", &image);
    assert!(fs::read(place.join("f")).unwrap() == content);
}

#[test]
fn the_worker_has_no_rights_and_ends_with_its_daemon() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let mut daemon = start(&node);
    let pid = worker(&node, None);
    assert_eq!(node.daemon().worker().guards.unwrap().missing(), Vec::<&str>::new());
    assert_eq!(status(pid, "Uid"), "64912 64912 64912 64912");
    assert_eq!(status(pid, "Gid"), "64912 64912 64912 64912");
    assert_eq!(status(pid, "Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    assert_eq!((status(pid, "NoNewPrivs"), status(pid, "Seccomp")), ("1".to_owned(), "2".to_owned()));
    // Its socket, the log, what it waits by, and the memory: no file, and above all none of /dev/fuse.
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap().display().to_string();
        let known = ["socket:", "anon_inode:", "/memfd:", "/dev/null", "pipe:"];
        assert!(known.iter().any(|start| target.starts_with(start)), "{target}");
    }
    daemon.signal(Signal::SIGKILL);
    daemon.ended();
    eventually("the worker ends too", || (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(()));
}
