//! A registry that stops answering is an error with a deadline, not a hung process; the log says what failed.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration::cri::ContainerSpec;
use integration::fault_proxy::{Failure, FaultProxy, Rule};
use integration::{demo, wait};

use crate::fixture::{Fixture, through};

/// What the daemon is told, in seconds: good reads have to end in it too, on a busy machine.
const READ_DEADLINE_SECONDS: u64 = 10;

/// How soon after the registry's return reads must succeed: below that the client's own patience must lie.
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);

/// How soon after a read failed the log has to say why.
const LOG_DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn fails_in_time(fixture: &Fixture) -> Result<()> {
    let files = [("first", 2 << 20), ("second", 2 << 20)];
    let context = demo::random_files(fixture.peers(), &fixture.subdir("dead")?, &files)?;
    let image = fixture.build(&context, "dead:v1")?;
    let proxy = FaultProxy::start(fixture.registry()?.address())?;
    let node = fixture.new_node("dead-node", &read_deadline(READ_DEADLINE_SECONDS))?;
    let name = through(&image.name, proxy.address());
    node.cri().pull(&name)?;
    let pod = node.pod("dead")?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new("reader", &name, &[]))?;
    let sum = |path: &str| node.cri().exec(&container, &["/bin/busybox", "sha256sum", path]);
    sum("/first")?.success()?;

    proxy.set_rules(vec![Rule::always("/blobs/", Failure::Stall)]);
    // Nothing but its deadline ends the read: the registry is silent until later.
    let failed = sum("/second")?;
    ensure!(failed.code != 0, "{failed:?}");
    ensure!(String::from_utf8_lossy(&failed.stderr).contains("Input/output error"), "not EIO: {failed:?}");
    sum("/first")?.success()?;

    // It comes back by itself, once what still waits for the silent registry has given up.
    proxy.set_rules(Vec::new());
    wait::until_true("the file is readable again", RECOVERY_LIMIT, || {
        sum("/second").is_ok_and(|executed| executed.code == 0)
    })
}

/// The registry says no, and is gone for good in the end: the log says each time which file of which image cannot be read, and why.
pub(crate) fn is_named_in_the_log(fixture: &Fixture) -> Result<()> {
    let name = "dead-named";
    let context = demo::random_files(fixture.peers(), &fixture.subdir(name)?, &[("first", 1 << 20)])?;
    for file in ["denied", "gone"] {
        demo::random_file(&context.join(file), 1 << 20)?;
    }
    let dockerfile = "COPY denied /srv/denied\nCOPY gone /srv/gone\n";
    File::options().append(true).open(context.join("Dockerfile"))?.write_all(dockerfile.as_bytes())?;
    let image = fixture.build(&context, &format!("{name}:v1"))?;
    let proxy = FaultProxy::start(fixture.registry()?.address())?;
    let node = fixture.new_node(&format!("{name}-node"), &read_deadline(READ_DEADLINE_SECONDS))?;
    let image = through(&image.name, proxy.address());
    node.cri().pull(&image)?;
    let pod = node.pod(name)?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new("reader", &image, &[]))?;
    let sum = |path: &str| node.cri().exec(&container, &["/bin/busybox", "sha256sum", path]);
    // The program that reads is read.
    sum("/first")?.success()?;
    let fails = |path: &str, why: &str| -> Result<()> {
        let says = |line: &str| [&image, path, why].iter().all(|text| line.contains(text));
        let named = wait::until("the log says why", LOG_DEADLINE, || {
            let failed = sum(path)?;
            let errors = String::from_utf8_lossy(&failed.stderr);
            ensure!(failed.code != 0 && errors.contains("Input/output error"), "not EIO: {failed:?}");
            // Another thread writes it.
            let log = node.daemon_log();
            Ok(log.lines().any(|line| line.contains("read fails") && says(line)).then_some(()))
        });
        named.with_context(|| format!("a line of {image}, {path} and {why:?} in:\n{}", node.daemon_log()))
    };
    proxy.set_rules(vec![Rule::always("/blobs/", Failure::Status(403))]);
    fails("/srv/denied", "403")?;
    proxy.set_rules(Vec::new());
    // A failure is remembered for a moment.
    wait::until_true("the file is readable again", RECOVERY_LIMIT, || {
        sum("/srv/denied").is_ok_and(|executed| executed.code == 0)
    })?;
    let address = proxy.address().to_string();
    drop(proxy);
    fails("/srv/gone", &address)?;
    node.cri().remove_pod(&pod.id)
}

/// Configuration of a daemon whose reads fail after so many seconds without an answer.
fn read_deadline(seconds: u64) -> String {
    format!("[daemon.read]\ndeadline_seconds = {seconds}.0\n")
}
