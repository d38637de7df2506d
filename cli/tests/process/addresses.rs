//! Sockets of the roles, as they are written and as they are made.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use crate::eventually;
use crate::node::{Node, Process};

#[test]
fn what_is_no_address_is_refused_by_every_role_with_what_is_accepted() {
    let node = Node::new();
    for (arguments, accepted) in [
        (["exporter", "--listen", "foo"], "unix:///PATH or an absolute path"),
        (["exporter", "--upstream", "tcp://127.0.0.1:1"], "unix:///PATH or an absolute path"),
        (["snapshotter", "--listen", "unix:run/x.sock"], "unix:///PATH or an absolute path"),
        (["snapshotter", "--daemon-socket", "http:///x"], "unix:///PATH or an absolute path"),
        (["daemon", "--socket", "./x.sock"], "unix:///PATH or an absolute path"),
    ] {
        let output = node.role(&arguments).current_dir(node.dir.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).replace("\n", " ");
        assert!(!output.status.success() && text.contains(accepted), "{arguments:?}: {text}");
    }
    let output = node.role(&["registry", "serve", "--listen", "/run/x.sock"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("ADDRESS:PORT"));
    fs::write(node.path("bad.toml"), "[snapshotter]\nlisten = \"x.sock\"\n").unwrap();
    let bad = node.path("bad.toml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_nydus-cluster"));
    let output = command.arg("--config").arg(&bad).arg("version").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("bad.toml") && text.contains("\"x.sock\" is no address"), "{text}");
}

#[test]
fn every_role_makes_its_socket_with_the_mode_that_is_configured() {
    let node = Node::new();
    let run = |name: &str| node.path("run").join(name);
    let config = "[exporter]\nlisten_mode = \"0660\"\n[snapshotter]\nlisten_mode = \"0660\"\n\
                  [snapshotter.daemon]\nspawn = false\n[daemon]\nsocket_mode = \"0660\"\n";
    fs::write(node.path("config.toml"), config).unwrap();
    let address = |name| format!("unix://{}", run(name).display());
    let root = node.path("root").display().to_string();
    for (role, arguments) in [
        ("exporter", vec!["exporter", "--listen"]),
        ("snapshotter", vec!["snapshotter", "--root", &root, "--listen"]),
        ("daemon", vec!["daemon", "--cache", &root, "--socket"]),
    ] {
        let command = || {
            let mut command = node.role(&arguments);
            command.arg(address(role)).stdout(Stdio::null()).stderr(Stdio::piped());
            command
        };
        let first = Process::spawn(&mut command());
        eventually("it listens", || UnixStream::connect(run(role)).ok());
        let mode = fs::metadata(run(role)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o660, "{role}");
        // A second one leaves the first its socket.
        let second = command().output().unwrap();
        assert!(!second.status.success(), "{role}");
        UnixStream::connect(run(role)).unwrap();
        first.signal(nix::sys::signal::Signal::SIGKILL);
        drop(first);
        // What is left after that is replaced.
        let mut third = Process::spawn(&mut command());
        eventually("it listens again", || UnixStream::connect(run(role)).ok());
        third.signal(nix::sys::signal::Signal::SIGTERM);
        assert!(third.ended().success(), "{role}");
        assert_eq!(fs::read_dir(node.path("run")).unwrap().count(), 0, "{role}");
    }
}
