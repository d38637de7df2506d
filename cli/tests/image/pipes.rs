//! Nobody reads what a command says.

use std::process::{Command, Stdio};

use test_support::closed_pipe;

use crate::lab::Lab;

#[test]
fn a_closed_pipe_is_a_quiet_end() {
    let lab = Lab::new();
    lab.convert("files:out");
    let blob = crate::lab::only_file(&lab.path("out/blobs"));
    let blob = blob.to_str().unwrap();
    for arguments in [
        &["inspect", "files:out"][..],
        &["inspect", "files:out", "--json"],
        &["inspect", "files:out", "--file", "/large"],
        &["inspect", "files:out", "--dump"],
        &["check", "files:out"],
        &["check", "files:out", "--json"],
        &["diff", "files:out", "files:out"],
        &["diff", "files:out", "files:out", "--json"],
        &["merge", blob, "--output", "merged.boot"],
        &["unpack", "files:out", "-"],
        &["convert", "--fresh", "directory:root", "oci:layout:v1"],
    ] {
        ends_quietly(lab.image(arguments));
        // And if nobody reads anything at all.
        let status = lab.image(arguments).stdout(closed_pipe()).stderr(closed_pipe()).status().unwrap();
        assert_eq!(status.code(), Some(141), "{arguments:?}");
        // Progress alone is nothing that a command depends on.
        let status = lab.image(arguments).stdout(Stdio::null()).stderr(closed_pipe()).status().unwrap();
        assert!(status.success(), "{arguments:?}: {status}");
    }
    for arguments in [&["version"][..], &["completions", "bash"]] {
        ends_quietly(lab.program(arguments));
    }
}

#[test]
fn a_closed_pipe_is_a_quiet_end_of_commands_for_clusters_too() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("cluster")).unwrap();
    std::fs::write(lab.path("cluster/imageList"), "registry.example/app:v1\n").unwrap();
    for arguments in [
        &["images", "cluster"][..],
        &["images", "cluster", "--json"],
        &["images", "cluster", "--why", "registry.example/app:v1"],
        &["inspect", "cluster"],
        &["inspect", "cluster", "--json"],
        &["ps"],
        &["ps", "--json"],
    ] {
        let command = || {
            let mut command = lab.program(&["cluster"]);
            command.args(arguments).env("XDG_STATE_HOME", lab.path("state"));
            command
        };
        ends_quietly(command());
        let status = command().stdout(closed_pipe()).stderr(closed_pipe()).status().unwrap();
        assert_eq!(status.code(), Some(141), "{arguments:?}");
    }
}

/// Nobody reads what it has to say: it ends, and says nothing of that.
fn ends_quietly(mut command: Command) {
    let output = command.stdout(closed_pipe()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(141), "{command:?}: {said}");
    assert!(!said.contains("panicked") && !said.contains("pipe"), "{command:?}: {said}");
}
