//! What a service manager hears of a role: `Type=notify` of systemd.

use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::SOON;
use crate::node::{Node, Process};

/// The next message.
fn told(socket: &UnixDatagram) -> String {
    let mut message = [0; 4096];
    let length = socket.recv(&mut message).unwrap();
    String::from_utf8(message[..length].to_vec()).unwrap()
}

#[test]
fn the_exporter_says_when_it_is_ready_and_when_it_stops() {
    let node = Node::new();
    let path = node.path("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let listen = format!("unix://{}", node.path("exporter.sock").display());
    let mut command = node.role(&["exporter", "--listen", &listen]);
    command.env("NOTIFY_SOCKET", &path).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut exporter = Process::spawn(&mut command);
    assert_eq!(told(&socket), "READY=1\n");
    // What waits for the unit may connect now.
    std::os::unix::net::UnixStream::connect(node.path("exporter.sock")).unwrap();
    exporter.signal(Signal::SIGTERM);
    let stopping = told(&socket);
    assert!(
        stopping.contains("STOPPING=1\n") && stopping.contains("STATUS=waiting up to 300 s"),
        "{stopping}"
    );
    assert!(exporter.ended().success());
    socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    assert!(socket.recv(&mut [0; 16]).is_err());
}

/// Messages until one that is wanted.
fn hears(socket: &UnixDatagram, wanted: &str) -> String {
    loop {
        let message = told(socket);
        if message.contains(wanted) {
            return message;
        }
    }
}

#[test]
fn daemon_and_snapshotter_say_when_they_are_ready_and_that_they_live() {
    if !crate::can_mount() {
        return;
    }
    let node = Node::new();
    let mut commands = [node.daemon_command(), node.snapshotter_command()];
    let mut running = Vec::new();
    for (command, role) in commands.iter_mut().zip(["daemon", "snapshotter"]) {
        let path = node.path(&format!("notify-{role}.sock"));
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
        let process = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
        if role == "snapshotter" {
            let wait = node.snapshotter_command().arg("--wait").output().unwrap();
            assert!(wait.status.success(), "{wait:?}");
        }
        hears(&socket, "READY=1");
        std::os::unix::net::UnixStream::connect(node.path(&format!("{role}.sock"))).unwrap();
        hears(&socket, "WATCHDOG=1");
        hears(&socket, "WATCHDOG=1");
        running.push((process, socket));
    }
    for (mut process, socket) in running {
        process.signal(Signal::SIGTERM);
        hears(&socket, "STOPPING=1");
        assert!(process.ended().success());
    }
}
