//! A registry that stands still in the middle of a build's push holds up no other build, and its own ends with its name.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::fault_proxy::{Failure, FaultProxy, Rule};
use integration::servers::{Buildctl, Exporter, ExporterOptions};
use integration::{demo, wait};

use crate::fixture::{Fixture, manifest, through};

/// How long the exporter waits for the registry in this test: longer than buildkitd does for a session that gives no sign of
/// life, which is two checks of 15 seconds, 5 seconds apart.
const PATIENCE: Duration = Duration::from_secs(50);

const DEADLINE: Duration = Duration::from_secs(180);

/// Layers of the build whose registry stands still: more than are converted at once, and fewer than buildkitd hands over at
/// once.
const LAYERS: u64 = 3;

/// An exporter in `dir` that waits so long for a registry, once.
fn patient_exporter(fixture: &Fixture, dir: &Path, patience: Duration) -> Result<Exporter> {
    let patience = patience.as_secs();
    let config = format!(
        "[registry.timeouts]\nidle_seconds = {patience}\noperation_seconds = {patience}\n\
         [registry.retries]\nattempts = 1\n"
    );
    let options = ExporterOptions { config, ..ExporterOptions::default() };
    Exporter::start_with(dir, &fixture.buildkitd()?.address(), &options)
}

pub(crate) fn others_go_on(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("stalled")?;
    let exporter = patient_exporter(fixture, &dir.join("x"), PATIENCE)?;
    let buildctl = Buildctl::new(fixture.peers(), exporter.address())?;
    let registry = fixture.registry()?;
    let proxy = FaultProxy::start(registry.address())?;
    // It has said that it is there.
    proxy.set_rules(vec![Rule::always("/blobs/uploads/", Failure::Stall)]);

    let files = [("data", 4 << 20), ("more", 4 << 20)];
    let stuck = demo::random_files(fixture.peers(), &dir.join("stuck"), &files)?;
    let stuck_name = format!("{}/stalled/stuck:v1", registry.address());
    let output = format!("type=nydus-cluster,name={}", through(&stuck_name, proxy.address()));
    let log = dir.join("stuck.log");
    let file = fs::File::create(&log)?;
    let mut command = buildctl.build_command(&stuck, &[&output]);
    let begin = Instant::now();
    let mut build = command.stdout(Stdio::null()).stderr(file).spawn().context("starting buildctl")?;
    let outcome = (|| {
        wait::until_true("all of its layers stand still", DEADLINE, || proxy.failed_requests() >= LAYERS)?;
        let free = demo::random_files(fixture.peers(), &dir.join("free"), &files)?;
        let free_name = format!("{}/stalled/free:v1", registry.address());
        buildctl.build(&free, &[&format!("type=nydus-cluster,name={free_name}")])?;
        manifest(&free_name)?;
        ensure!(build.try_wait()?.is_none(), "the other build had to wait for this one's end");
        wait::until("the build whose registry stands still ends", DEADLINE, || Ok(build.try_wait()?))
    })();
    if outcome.is_err() {
        build.kill()?;
        build.wait()?;
    }
    let (status, said) = (outcome?, fs::read_to_string(&log)?);
    ensure!(!status.success(), "a push to a registry that stands still succeeded:\n{said}");
    ensure!(begin.elapsed() > PATIENCE, "it ended after {:?}:\n{said}", begin.elapsed());
    let address = proxy.address().to_string();
    let named = said.lines().any(|line| line.contains("ERROR") && line.contains(&address));
    ensure!(named, "the error does not name the registry {address}:\n{said}");
    ensure!(!said.contains("session"), "the session ended meanwhile:\n{said}");
    ensure!(manifest(&stuck_name).is_err(), "it left an image");

    // The exporter is as good as before, and so is what the build had begun.
    proxy.set_rules(Vec::new());
    buildctl.build(&stuck, &[&output])?;
    manifest(&stuck_name)?;
    Ok(())
}

/// buildkitd hands over so many layers at once, of all its builds.
const SLOTS: u64 = 4;

/// A registry that stands still under as many layers as buildkitd hands over at once keeps other builds waiting, no longer than for
/// one deadline of the exporter: then its own build ends with its name, and the others go on.
///
/// What made it end is told by what was asked and what was said: a loaded machine takes its time for all of it.
pub(crate) fn all_slots(fixture: &Fixture) -> Result<()> {
    // Long enough for all slots to be taken, shorter than buildkitd bears a silent session, and another than the default.
    const PATIENCE: Duration = Duration::from_secs(25);
    let dir = fixture.subdir("stalled-slots")?;
    let exporter = patient_exporter(fixture, &dir.join("x"), PATIENCE)?;
    let buildctl = Buildctl::new(fixture.peers(), exporter.address())?;
    let registry = fixture.registry()?;
    let proxy = FaultProxy::start(registry.address())?;
    proxy.set_rules(vec![Rule::always("/blobs/uploads/", Failure::Stall)]);

    let files = ["a", "b", "c", "d", "e"].map(|name| (name, 1 << 20));
    let stuck = demo::random_files(fixture.peers(), &dir.join("stuck"), &files)?;
    let stuck_name = format!("{}/stalled/slots:v1", registry.address());
    let output = format!("type=nydus-cluster,name={}", through(&stuck_name, proxy.address()));
    let log = dir.join("stuck.log");
    let file = fs::File::create(&log)?;
    let mut build = buildctl
        .build_command(&stuck, &[&output])
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .context("starting buildctl")?;
    let outcome = (|| {
        wait::until_true("all slots stand still", DEADLINE, || proxy.held_requests() == SLOTS)?;
        let free = demo::random_files(fixture.peers(), &dir.join("free"), &files)?;
        let free_name = format!("{}/stalled/slots-free:v1", registry.address());
        buildctl.build(&free, &[&format!("type=nydus-cluster,name={free_name}")])?;
        manifest(&free_name)?;
        ensure!(proxy.held_requests() < SLOTS, "the other build did not need the slots of this one");
        wait::until("the build whose registry stands still ends", DEADLINE, || Ok(build.try_wait()?))
    })();
    if outcome.is_err() {
        build.kill()?;
        build.wait()?;
    }
    let (status, said) = (outcome?, fs::read_to_string(&log)?);
    let address = proxy.address().to_string();
    ensure!(!status.success() && said.contains(&address), "it ended with {status}:\n{said}");
    ensure!(said.contains(&format!("{PATIENCE:?}")), "not the exporter's deadline ended it:\n{said}");
    ensure!(!said.contains("session"), "the session ended before the exporter's deadline:\n{said}");
    // No layer has cost a second deadline: none was asked for again, and none is waited for any longer.
    let asked = proxy.failed_requests();
    ensure!(asked <= files.len() as u64, "{asked} uploads were begun for {} layers", files.len());
    wait::until_true("nothing waits for the registry any longer", DEADLINE, || proxy.held_requests() == 0)
}
