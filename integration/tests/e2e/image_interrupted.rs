//! Commands that are interrupted, or whose registry stops answering, leave nothing half-written.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::fault_proxy::{Failure, FaultProxy, Rule};
use integration::process::Server;
use integration::{demo, wait};
use nix::sys::signal::{Signal, kill};

use crate::fixture::{Fixture, nydus_layers, through};
use crate::image_commands::{expect_exit, image};

const DEADLINE: Duration = Duration::from_secs(60);
/// How soon an interrupted command must be gone: before it would give up the silent registry, after 30 seconds.
const END_LIMIT: Duration = Duration::from_secs(25);

/// A check that is interrupted, or that the registry refuses to answer, says nothing of the image.
pub(crate) fn check(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("interrupted-check")?;
    let files = [("first", 1 << 20), ("second", 1 << 20)];
    let built = fixture
        .build(&demo::random_files(fixture.peers(), &dir.join("context"), &files)?, "unanswered:v1")?;
    let proxy = FaultProxy::start(fixture.registry()?.address())?;
    let name = through(&built.name, proxy.address());
    let blob = format!("/blobs/{}", nydus_layers(&built.manifest)?.0[1]);

    proxy.set_rules(vec![Rule::always(&blob, Failure::Status(403))]);
    let unknown = expect_exit(2, &mut image("check", &name)?)?;
    ensure!(
        unknown.stderr.contains("cannot check") && unknown.stdout.contains("not known to be sound"),
        "{unknown:?}"
    );

    let refused = proxy.failed_requests();
    proxy.set_rules(vec![Rule::always(&blob, Failure::Stall)]);
    let mut server = Server::spawn("image check", image("check", &name)?, dir.join("check.log"))?;
    wait::until_true("it waits for the registry", DEADLINE, || proxy.failed_requests() > refused)?;
    kill(server.pid()?, Signal::SIGINT)?;
    let status = wait::until("it ended", END_LIMIT, || server.exited())?;
    ensure!(status.code() == Some(130) && !server.log_text().contains("damaged"), "{}", server.log_text());

    proxy.set_rules(Vec::new());
    expect_exit(0, &mut image("check", &name)?)?;
    Ok(())
}

/// Interrupts each way of unpacking while it waits for a registry that does not answer.
pub(crate) fn unpack(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("interrupted")?;
    let files = [("first", 1 << 20), ("second", 1 << 20)];
    let built = fixture
        .build(&demo::random_files(fixture.peers(), &dir.join("context"), &files)?, "interrupted:v1")?;
    let proxy = FaultProxy::start(fixture.registry()?.address())?;
    let name = through(&built.name, proxy.address());
    let last = nydus_layers(&built.manifest)?.0[2].clone();
    let target = dir.join("target");
    fs::create_dir(&target)?;
    let empty = target.join("empty");

    for (arguments, left) in
        [(vec!["tar"], 0), (vec!["new", "--directory"], 0), (vec!["empty", "--directory"], 1)]
    {
        if left > 0 {
            fs::create_dir(&empty)?;
        }
        // Part of it is there by then: the last blob's file comes last.
        let stalled = proxy.failed_requests();
        proxy.set_rules(vec![Rule::always(&format!("/blobs/{last}"), Failure::Stall).method("GET")]);
        let mut command = image("unpack", &name)?;
        command.current_dir(&target).args(&arguments);
        let mut server = Server::spawn("image unpack", command, dir.join("unpack.log"))?;
        wait::until_true("it waits for the registry", DEADLINE, || proxy.failed_requests() > stalled)?;
        ensure!(fs::read_dir(&target)?.count() > 0, "something was written meanwhile");
        kill(server.pid()?, Signal::SIGINT)?;
        let status = wait::until("it ended", END_LIMIT, || server.exited())?;
        ensure!(status.code() == Some(130), "{arguments:?}: {status}\n{}", server.log_text());
        ensure!(server.log_text().contains("interrupted"), "{}", server.log_text());
        let names: Vec<_> =
            fs::read_dir(&target)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
        ensure!(names.len() == left, "{arguments:?} left {names:?}");
        ensure!(
            left == 0 || fs::read_dir(&empty)?.count() == 0,
            "the directory that was empty is empty again"
        );
    }
    // And without a fault, in a pipe: what it does shows in lines.
    proxy.set_rules(Vec::new());
    let done = integration::process::run(
        image("unpack", &name)?.current_dir(&target).args(["empty", "--directory"]),
    )?;
    ensure!(done.stderr.contains("unpack: ") && empty.join("second").exists(), "{}", done.stderr);
    Ok(())
}
