//! Sources that say nothing for a while, and what that costs whom.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
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
    name: String,
    gate: Gate,
    image: Image,
    first: Vec<u8>,
    rest: Vec<u8>,
}

impl Gated {
    fn new(node: &Node, number: u64) -> Self {
        let (name, gate) = (format!("gated-{number}"), Gate::before(node.registry()));
        // More than is fetched ahead for whoever reads the first file.
        let (first, rest) = (noise(2 * number, 1000), noise(2 * number + 1, 6 << 20));
        let image = node.image(&name, &[("first", &first), ("rest", &rest)]);
        Self { name, gate, image, first, rest }
    }

    /// Mounts it, and has somebody read from it while the gate is closed; it has answered before, or never.
    fn start_reader(&self, node: &Node, has_answered: bool) -> Process {
        let backend = BackendSpec::Registry { repository: format!("{}/{}", self.gate.address, self.name) };
        self.gate.set(has_answered);
        let place = node.daemon().try_mount_from(&self.name, &self.image, vec![backend]).unwrap();
        if has_answered {
            assert!(fs::read(place.join("first")).unwrap() == self.first);
            self.gate.set(false);
        }
        let mut command = Command::new("cat");
        let copy = File::create(self.copy(node)).unwrap();
        Process::spawn(command.arg(place.join("rest")).stdin(Stdio::null()).stdout(copy))
    }

    /// What its reader has read.
    fn copy(&self, node: &Node) -> PathBuf {
        node.path(&format!("{}.copy", self.name))
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
    // It is said of a source that it is silent after 10 of them, twice, while readers wait.
    fs::write(node.path("config.toml"), "[daemon.read]\ndeadline_seconds = 60\n").unwrap();
    let content = noise(99, 500_000);
    let living = node.image("living", &[("file", &content)]);
    let _daemon = Process::spawn(node.daemon_command().stdout(Stdio::null()).stderr(Stdio::null()));
    node.daemon().wait();
    // All are built before the time of the first reader begins.
    let gated = [0, 1, 2, 3].map(|number| Gated::new(&node, number));
    let mut readers: Vec<Process> = Vec::new();
    for (number, gated) in gated.iter().enumerate() {
        readers.push(gated.start_reader(&node, number < 2));
    }

    eventually("all are said to be silent", || (number_in(&node, "silent") == 4).then_some(()));
    let first = node.daemon().worker().pid.unwrap();
    kill(Pid::from_raw(first.try_into().unwrap()), Signal::SIGKILL).unwrap();
    eventually("another worker works", || node.daemon().worker().pid.filter(|pid| *pid != first));
    // All of this is while the gates are closed.
    let place = node.daemon().mount("living", &living);
    assert!(fs::read(place.join("file")).unwrap() == content);
    eventually("all are silent to this worker too", || (number_in(&node, "silent") == 4).then_some(()));
    eventually("the living one is said to answer", || (number_in(&node, "answers") == 1).then_some(()));
    for reader in &mut readers {
        assert!(reader.running(), "who reads from a silent source waits, whichever worker asks it");
    }

    for gated in &gated {
        gated.gate.set(true);
    }
    for (gated, reader) in gated.iter().zip(&mut readers) {
        assert!(reader.ended().success());
        assert!(fs::read(gated.copy(&node)).unwrap() == gated.rest);
    }
    eventually("all are said to answer", || (number_in(&node, "answers") == 5).then_some(()));
}
