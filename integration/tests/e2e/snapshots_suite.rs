//! containerd's own test suite for snapshotters.

use std::process::Command;

use anyhow::{Result, ensure};
use integration::process;
use integration::servers::Snapshotter;

use crate::fixture::Fixture;

/// How many tests it has.
const TESTS: usize = 21;

pub(crate) fn passes(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("snapshots-suite")?;
    let snapshotter = Snapshotter::start(&dir.join("s"), "")?;
    let output = process::run(
        Command::new(fixture.peers().snapshots_suite()?)
            .args(["-test.v", "-test.root"])
            .env("SNAPSHOTTER_ADDRESS", &snapshotter.as_proxy().socket)
            .env("TMPDIR", &dir),
    )?;
    let passed =
        output.stdout.lines().filter(|line| line.trim_start().starts_with("--- PASS: TestSnapshotter/"));
    let passed: Vec<_> = passed.collect();
    ensure!(passed.len() == TESTS, "{} of {TESTS} tests passed:\n{}", passed.len(), output.stdout);
    Ok(())
}
