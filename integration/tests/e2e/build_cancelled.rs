//! Ctrl-C ends a build at once, also while its layers are pushed, and leaves nothing under the image's name.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::fault_proxy::{Failure, FaultProxy, Rule};
use integration::servers::Buildctl;
use integration::{demo, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fixture::{Fixture, manifest, through};

const PUSH_DEADLINE: Duration = Duration::from_secs(60);
/// How soon the interrupted buildctl must have ended.
const END_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) fn ends(fixture: &Fixture) -> Result<()> {
    ends_at_once(fixture, &fixture.buildctl()?, "cancelled")
}

/// With the exporter that `buildctl` speaks to; `name` is the image's and the context's.
pub(crate) fn ends_at_once(fixture: &Fixture, buildctl: &Buildctl, name: &str) -> Result<()> {
    let context = demo::random_files(fixture.peers(), &fixture.subdir(name)?, &[("data", 4 << 20)])?;
    let name = format!("{}/{name}:v1", fixture.registry()?.address());
    let proxy = FaultProxy::start(fixture.registry()?.address())?;
    // The push hangs where it is certain to be when the interrupt comes.
    proxy.set_rules(vec![Rule::always("/blobs/uploads/", Failure::Stall)]);
    let output = format!("type=nydus-cluster,name={}", through(&name, proxy.address()));
    let mut command = buildctl.build_command(&context, &[&output]);
    let mut build =
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("starting buildctl")?;
    let outcome = interrupt(&mut build, &proxy);
    if outcome.is_err() {
        build.kill()?;
        build.wait()?;
    }
    outcome?;
    ensure!(manifest(&name).is_err(), "the interrupted build pushed an image");
    // The exporter is as good as before.
    proxy.set_rules(Vec::new());
    buildctl.build(&context, &[&output])?;
    manifest(&name)?;
    Ok(())
}

fn interrupt(build: &mut Child, proxy: &FaultProxy) -> Result<()> {
    wait::until_true("the push began", PUSH_DEADLINE, || proxy.failed_requests() > 0)?;
    kill(Pid::from_raw(i32::try_from(build.id())?), Signal::SIGINT)?;
    let status = wait::until("the interrupted buildctl ended", END_DEADLINE, || Ok(build.try_wait()?))?;
    ensure!(!status.success(), "an interrupted build succeeded");
    Ok(())
}
