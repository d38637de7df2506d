//! Sources that say nothing for a while, and what that costs whom.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use fuse_daemon::control::BackendSpec;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use test_support::noise;

use crate::node::{Image, Node, Process};
use crate::status::status;
use crate::{can_mount, eventually};

/// Stands before a registry. Closed, it takes what is said, and passes nothing on until it is opened.
struct Gate {
    address: SocketAddr,
    open: Arc<(Mutex<bool>, Condvar)>,
}

impl Gate {
    fn before(registry: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let open = Arc::new((Mutex::new(true), Condvar::new()));
        let gate = Arc::clone(&open);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(registry).unwrap());
                relay(client.try_clone().unwrap(), server.try_clone().unwrap(), Arc::clone(&gate));
                relay(server, client, Arc::clone(&gate));
            }
        });
        Self { address, open }
    }

    fn set(&self, is_open: bool) {
        *self.open.0.lock().unwrap() = is_open;
        self.open.1.notify_all();
    }
}

fn relay(mut from: TcpStream, mut to: TcpStream, gate: Arc<(Mutex<bool>, Condvar)>) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            let (open, changed) = &*gate;
            drop(changed.wait_while(open.lock().unwrap(), |open| !*open));
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}

/// An image that is read through a gate of its own.
struct Gated {
    gate: Gate,
    rest: Vec<u8>,
    reader: Process,
    /// What the reader has read.
    copy: std::path::PathBuf,
}

impl Gated {
    /// Mounts it, and has somebody read from it while the gate is closed; it has answered before, or never.
    fn start(node: &Node, number: u64, has_answered: bool) -> Self {
        let (name, gate) = (format!("gated-{number}"), Gate::before(node.registry()));
        // More than is fetched ahead for whoever reads the first file.
        let (first, rest) = (noise(2 * number, 1000), noise(2 * number + 1, 6 << 20));
        let image: Image = node.image(&name, &[("first", &first), ("rest", &rest)]);
        let backend = BackendSpec::Registry { repository: format!("{}/{name}", gate.address) };
        gate.set(has_answered);
        let place = node.daemon().try_mount_from(&name, &image, vec![backend]).unwrap();
        if has_answered {
            assert!(fs::read(place.join("first")).unwrap() == first);
            gate.set(false);
        }
        let copy = node.path(&format!("copy-{number}"));
        let mut command = Command::new("cat");
        command.arg(place.join("rest")).stdin(Stdio::null()).stdout(File::create(&copy).unwrap());
        Self { gate, rest, reader: Process::spawn(&mut command), copy }
    }
}

/// How many sources are in this state.
fn number_in(node: &Node, state: &str) -> usize {
    let sources = status(node)["sources"].clone();
    sources.as_array().unwrap().iter().filter(|source| source["state"] == state).count()
}

#[test]
fn several_silent_sources_hold_up_nobody_else_and_deliver_when_they_speak_also_to_another_worker() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    // It is said of a source that it is silent after 5 of them, twice.
    fs::write(node.path("config.toml"), "[daemon.read]\ndeadline_seconds = 30\n").unwrap();
    let content = noise(99, 500_000);
    let living = node.image("living", &[("file", &content)]);
    let _daemon = Process::spawn(node.daemon_command().stdout(Stdio::null()).stderr(Stdio::null()));
    node.daemon().wait();
    let mut gated: Vec<Gated> = (0..4).map(|number| Gated::start(&node, number, number < 2)).collect();

    eventually("all are said to be silent", || (number_in(&node, "silent") == 4).then_some(()));
    let first = node.daemon().worker().pid.unwrap();
    kill(Pid::from_raw(first.try_into().unwrap()), Signal::SIGKILL).unwrap();
    eventually("another worker works", || node.daemon().worker().pid.filter(|pid| *pid != first));
    // All of this is while the gates are closed.
    let place = node.daemon().mount("living", &living);
    assert!(fs::read(place.join("file")).unwrap() == content);
    eventually("all are silent to this worker too", || (number_in(&node, "silent") == 4).then_some(()));
    assert_eq!(number_in(&node, "answers"), 1);
    for Gated { reader, .. } in &mut gated {
        assert!(reader.running(), "who reads from a silent source waits, whichever worker asks it");
    }

    for Gated { gate, .. } in &gated {
        gate.set(true);
    }
    for Gated { reader, copy, rest, .. } in &mut gated {
        assert!(reader.ended().success());
        assert!(fs::read(copy).unwrap() == *rest);
    }
    eventually("all are said to answer", || (number_in(&node, "answers") == 5).then_some(()));
}
