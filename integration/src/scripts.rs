//! What scripts say and do before they work, and while they do.

use std::fs;
use std::process::{Command, Output};

use test_support::write_program;

use crate::documents::root;

#[test]
fn scripts_explain_themselves_before_they_do_anything() {
    for name in ["bench", "deps", "quickstart", "soak", "test"] {
        let script = root().join("scripts").join(name);
        let output = Command::new(&script).args(["stop", "--help"]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{name}: {:?}", output.stderr);
        assert!(said.contains(&format!("usage: scripts/{name}")), "{name}: {said}");
    }
}

/// What was said on standard error.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_compiler_of_another_version_is_refused_before_anything_is_made() {
    let wanted = fs::read_to_string(root().join("rust-toolchain.toml")).unwrap();
    let (_, wanted) = wanted.split_once("\nchannel = \"").unwrap();
    let (wanted, _) = wanted.split_once('"').unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (programs, cache) = (dir.path().join("bin"), dir.path().join("cache"));
    fs::create_dir(&programs).unwrap();
    write_program(&programs.join("rustc"), b"#!/bin/sh\necho rustc 1.0.0\n");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut deps = Command::new(root().join("scripts/deps"));
    let output = deps.env("PATH", path).env("NYDUS_CLUSTER_CACHE", &cache).output().unwrap();
    assert!(!output.status.success());
    assert_eq!(said(&output), format!("deps: Rust {wanted} is needed, rustc says: 1.0.0\n"));
    assert!(!cache.exists(), "something was made in {}", cache.display());
}

#[test]
fn what_takes_long_says_how_long_it_has_taken() {
    let dir = tempfile::tempdir().unwrap();
    // It ends once its clock has been seen, and as it would have without one.
    let script = r#"
        set -euo pipefail
        . "$1/scripts/lib/common.sh"
        clock_seconds=0.05
        with_clock "compiling" sh -c "until grep -q 'so far' \"$2\"; do :; done; exit 3" 2>"$2" || echo "ended with $?"
    "#;
    let said = dir.path().join("said");
    let mut shell = Command::new("bash");
    let output = shell.args(["-c", script, "bash"]).arg(root()).arg(&said).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ended with 3\n", "{output:?}");
    let said = fs::read_to_string(said).unwrap();
    assert!(said.contains("compiling: 0:0") && said.contains(" so far\n"), "{said}");
}

/// The soak builds and tries what the page shows.
#[test]
fn the_page_on_installing_shows_how_to_build_without_libraries() {
    let page = fs::read_to_string(root().join("docs/install.md")).unwrap();
    let shown: Vec<&str> = page.lines().filter(|line| line.contains("crt-static")).collect();
    let [command] = &shown[..] else { panic!("one line: {shown:?}") };
    for part in
        ["RUSTFLAGS='", "getrandom_backend=", " cargo build --release --locked --package cli --target "]
    {
        assert!(command.contains(part), "{part} in {command}");
    }
    let soak = fs::read_to_string(root().join("scripts/soak")).unwrap();
    assert!(soak.contains("command=$(grep -m 1 crt-static docs/install.md)\n"), "the soak runs another one");
}
