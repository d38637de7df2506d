//! Nobody reads what a command says.

use std::fs::File;
use std::process::{Command, Stdio};

use crate::lab::Lab;

/// A pipe whose reader is gone.
fn closed() -> Stdio {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    File::from(writer).into()
}

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
        &["convert", "directory:root", "oci:layout:v1"],
    ] {
        let output = lab.image(arguments).stdout(closed()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(141), "{arguments:?}: {said}");
        assert!(!said.contains("panicked") && !said.contains("pipe"), "{arguments:?}: {said}");
        // And if nobody reads anything at all.
        let status = lab.image(arguments).stdout(closed()).stderr(closed()).status().unwrap();
        assert_eq!(status.code(), Some(141), "{arguments:?}");
        // Progress alone is nothing that a command depends on.
        let status = lab.image(arguments).stdout(Stdio::null()).stderr(closed()).status().unwrap();
        assert!(status.success(), "{arguments:?}: {status}");
    }
    for arguments in [&["version"][..], &["completions", "bash"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nydus-cluster"));
        let output = command.args(arguments).stdout(closed()).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.len()), (Some(141), 0), "{arguments:?}: {output:?}");
    }
}
