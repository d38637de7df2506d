//! Without a buildkitd behind it the exporter says so.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use integration::servers::{Buildctl, Exporter};
use integration::{demo, process};

use crate::fixture::Fixture;

/// Nobody who builds waits longer for a word; a busy machine takes some of it.
const LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn says_so(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("absent")?;
    let upstream = format!("unix://{}", dir.join("no-buildkitd.sock").display());
    let exporter = Exporter::start(&dir.join("exporter"), &upstream)?;
    let context = demo::random_files(fixture.peers(), &dir.join("context"), &[])?;
    let start = Instant::now();
    let buildctl = Buildctl::new(fixture.peers(), exporter.address())?;
    let output = "type=nydus-cluster,name=127.0.0.1:1/absent:v1";
    let said = process::run_failing(&mut buildctl.build_command(&context, &[output]))?.stderr;
    ensure!(start.elapsed() < LIMIT, "it took {:?}", start.elapsed());
    ensure!(said.contains("buildkitd") && said.contains("no-buildkitd.sock"), "unclear:\n{said}");
    Ok(())
}
