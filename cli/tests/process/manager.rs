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
