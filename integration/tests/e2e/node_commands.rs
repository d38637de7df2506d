//! What a node says of itself, and an image that is fetched to its end in the background.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::cri::ContainerSpec;
use integration::servers::free_address;
use integration::{demo, process, wait};
use serde_json::Value;

use crate::fixture::{Fixture, nydus_layers};

const DEADLINE: Duration = Duration::from_secs(90);

/// Reads all files of the container.
const READ_ALL: &str = "find / -xdev -type f -exec cat {} + > /dev/null";

pub(crate) fn complete_and_traced(fixture: &Fixture) -> Result<()> {
    let image = fixture.demo()?;
    let mut node = fixture.new_node("complete", "[daemon.prefetch]\ncomplete_after_seconds = 1\n")?;
    let pod = node.pod("complete")?;
    node.cri().pull(&image.name)?;
    let address = free_address()?;
    let spec = ContainerSpec::new("app", &image.name, &[]).with_env("PORT", &address.port().to_string());
    let container = node.cri().run_container(&pod, &spec)?;
    demo::ask_until_answered(address, DEADLINE)?;

    let snapshotter = node.snapshotter()?;
    let trace = process::run(&mut snapshotter.ask(&["node", "trace", &image.name])?)?.stdout;
    let traced: Vec<&str> = trace.lines().collect();
    let place = |end: &str| traced.iter().position(|path| path.ends_with(end));
    ensure!(
        place("/app.py").is_some() && place("/python3.11") < place("/app.py"),
        "not what was read: {trace}"
    );
    let mut counts = Value::Null;
    wait::until_true("all of the image is cached", DEADLINE, || {
        let asked = snapshotter.ask(&["node", "status", "--json"]).and_then(|mut ask| process::run(&mut ask));
        let status: Value =
            asked.ok().and_then(|out| serde_json::from_str(&out.stdout).ok()).unwrap_or_default();
        counts = status["mounts"][0]["chunks"].clone();
        counts["all"].as_u64() > Some(10) && counts["ready"] == counts["all"]
    })?;
    let table = process::run(&mut snapshotter.ask(&["node", "status"])?)?.stdout;
    ensure!(table.contains(&image.name) && table.contains("100%"), "{table}");

    let log = fixture.registry()?.access_log();
    let start = log.mark()?;
    node.cri().exec(&container, &["sh", "-c", READ_ALL])?.success()?;
    let (blobs, _) = nydus_layers(&image.manifest)?;
    let requests = log.since(start)?;
    let reads: Vec<_> =
        requests.iter().filter(|request| blobs.iter().any(|blob| request.reads_blob(blob))).collect();
    ensure!(reads.is_empty(), "read from the registry though all was there: {reads:#?}");
    node.cri().remove_pod(&pod.id)
}
