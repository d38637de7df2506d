//! kill -9 of the daemon: who reads waits, and then has right bytes from the next one.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use fuse_daemon::control::{BackendSpec, Client, Handover, MountRequest};
use nix::sys::signal::Signal;
use test_support::noise;

use crate::load::{Load, files};
use crate::node::{JOURNALS, Node, Process};
use crate::{can_mount, eventually};

fn start(node: &Node) -> Process {
    let daemon = Process::spawn(node.daemon_command().stdout(Stdio::null()).stderr(Stdio::null()));
    node.daemon().wait();
    daemon
}

/// Ends a daemon as a crash would, and waits until it is gone.
fn kill(mut daemon: Process) {
    daemon.signal(Signal::SIGKILL);
    daemon.ended();
}

/// Has daemons do without the kernel's help, as they have to before Linux 6.9.
pub(crate) fn keep_journals(node: &Node) {
    let config = "[daemon]\njournal = \"always\"\n[daemon.read]\ndeadline_seconds = 20\n";
    fs::write(node.path("config.toml"), config).unwrap();
    node.mounted("tmpfs", JOURNALS);
}

#[test]
fn what_the_dead_daemon_had_taken_and_not_answered_is_answered_by_the_next() {
    if can_mount() {
        answered_by_the_next(&Node::new(), adopt);
    }
}

#[test]
fn it_is_where_the_kernel_repeats_nothing() {
    if can_mount() {
        let node = Node::new();
        keep_journals(&node);
        answered_by_the_next(&node, adopt);
        let journals = fs::read_dir(node.path(JOURNALS)).unwrap().count();
        assert_eq!(journals, 1, "one for the mount");
    }
}

/// Has a daemon take over the mount.
fn adopt(node: &Node, _daemon: &Process, handover: &Handover, descriptor: &OwnedFd) {
    node.daemon().adopt(handover, descriptor).unwrap();
}

/// A reader waits while its daemon is killed, and `adopt` has the next one take over.
pub(crate) fn answered_by_the_next(node: &Node, adopt: fn(&Node, &Process, &Handover, &OwnedFd)) {
    let content = noise(1, 500_000);
    let mut image = node.image("i", &[("f", &content)]);
    let good = BackendSpec::of_image(&image.reference).unwrap();
    // Takes connections, and is silent.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    image.reference = format!("{}/i:v1", silent.local_addr().unwrap());

    let daemon = start(node);
    let place = node.daemon().mount("i", &image);
    let (mut handover, descriptor) = node.daemon().handover("i");
    let read = node.path("read");
    let mut command = Command::new("cat");
    let output = fs::File::create(&read).unwrap();
    let mut reader = Process::spawn(command.arg(place.join("f")).stdin(Stdio::null()).stdout(output));
    // It asks the registry: the kernel's request is taken.
    silent.set_nonblocking(true).unwrap();
    let _asked = eventually("the daemon asks the registry", || silent.accept().ok());
    kill(daemon);
    handover.mount.backends = vec![good];
    let mut next = start(node);
    adopt(node, &next, &handover, &descriptor);
    node.daemon().adopt(&handover, &descriptor).expect("a repetition changes nothing");
    assert!(reader.ended().success());
    assert!(fs::read(&read).unwrap() == content);
    // Told to end, it leaves the mount to the next as well.
    next.signal(Signal::SIGTERM);
    assert!(next.ended().success());
    let _last = start(node);
    node.daemon().adopt(&handover, &descriptor).unwrap();
    assert!(fs::read(node.path("mnt/i/f")).unwrap() == content);
}

#[test]
fn a_mount_that_cannot_be_taken_over_is_refused_and_stays_for_another_attempt() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let content = noise(2, 100_000);
    let image = node.image("i", &[("f", &content)]);
    let daemon = start(&node);
    let place = node.daemon().mount("i", &image);
    let (handover, descriptor) = node.daemon().handover("i");
    kill(daemon);
    let _next = start(&node);
    let mut wrong = handover.clone();
    wrong.mount.bootstrap = node.path("no such.boot");
    node.daemon().adopt(&wrong, &descriptor).unwrap_err();
    let mut wrong = handover.clone();
    wrong.device += 1;
    let error = node.daemon().adopt(&wrong, &descriptor).unwrap_err().to_string();
    assert!(error.contains("not mounted there any more"), "{error}");
    let file = fs::File::open(&image.bootstrap).unwrap();
    let error = node.daemon().adopt(&handover, &file.into()).unwrap_err().to_string();
    assert!(error.contains("none of /dev/fuse"), "{error}");
    node.daemon().adopt(&handover, &descriptor).unwrap();
    assert!(fs::read(place.join("f")).unwrap() == content);
}

#[test]
fn twenty_kills_under_load_show_no_error_and_no_wrong_byte() {
    if can_mount() {
        kills_under_load(&Node::new(), 20);
    }
}

#[test]
fn nor_do_kills_where_the_kernel_repeats_nothing() {
    if can_mount() {
        let node = Node::new();
        keep_journals(&node);
        kills_under_load(&node, 8);
    }
}

fn kills_under_load(node: &Node, kills: u64) {
    let files = files();
    let image = node
        .image("i", &files.iter().map(|(name, content)| (name.as_str(), &content[..])).collect::<Vec<_>>());
    let mut daemon = start(node);
    let place = node.daemon().mount("i", &image);
    let (handover, descriptor) = node.daemon().handover("i");
    let mut load = Load::start(&place);
    for round in 0..kills {
        load.wait_for_reads(200);
        // At another moment of whatever it is doing each time.
        std::thread::sleep(Duration::from_millis(round * 3 % 17));
        kill(daemon);
        daemon = start(node);
        node.daemon().adopt(&handover, &descriptor).unwrap();
    }
    load.wait_for_reads(200);
}

/// Whether a thread of a process is in this system call, which it is not back from.
fn waits_in(process: &Process, call: i64) -> bool {
    let threads = fs::read_dir(format!("/proc/{}/task", process.0.id())).unwrap();
    let calls = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("syscall")).ok());
    calls.into_iter().any(|now| now.split(' ').next() == Some(&call.to_string()))
}

#[test]
fn a_mount_whose_daemon_dies_while_another_looks_at_it_is_cleared_away() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let content = noise(3, 100_000);
    let image = node.image("app", &[("f", &content)]);
    let mut first = start(&node);
    let place = node.daemon().mount("app", &image);
    // It answers nobody, as one whose process lives on for a moment after it was killed.
    first.signal(Signal::SIGSTOP);
    let mut command = node.role(&["daemon"]);
    command.arg("--socket").arg(node.path("other.sock")).arg("--cache").arg(node.path("other-cache"));
    let other = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let client = Client::new(node.path("other.sock"));
    eventually("the other daemon answers", || node.runtime.block_on(client.summary()).ok());
    let request = MountRequest {
        id: "app".to_owned(),
        bootstrap: image.bootstrap.clone(),
        mountpoint: place.clone(),
        image: image.reference.clone(),
        backends: vec![BackendSpec::of_image(&image.reference).unwrap()],
    };
    std::thread::scope(|scope| {
        let mounted = scope.spawn(|| node.runtime.block_on(client.mount(&request)));
        eventually("it looks at what is mounted there", || {
            waits_in(&other, nix::libc::SYS_statfs).then_some(())
        });
        first.signal(Signal::SIGKILL);
        first.ended();
        mounted.join().unwrap().unwrap();
    });
    assert!(fs::read(place.join("f")).unwrap() == content);
    node.runtime.block_on(client.umount("app")).unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(place.to_str().unwrap()), "the dead mount is there still: {mounts}");
}
