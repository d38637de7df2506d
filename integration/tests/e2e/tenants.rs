//! Two tenants whose images share a blob: what one has brought into the cache the other reads only if its own repository
//! gives it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cri::ContainerSpec;
use integration::fault_proxy::{Failure, FaultProxy, Rule};
use integration::tree::content_digest;
use integration::{demo, wait};

use crate::fixture::{Fixture, through};

/// What was refused is asked for again after a moment.
const ALLOWED_DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn read_what_their_own_repositories_give(fixture: &Fixture) -> Result<()> {
    let context = demo::random_files(fixture.peers(), &fixture.subdir("tenants")?, &[("other", 4096)])?;
    fs::create_dir(context.join("data"))?;
    demo::random_file(&context.join("data/secret"), 2 << 20)?;
    let dockerfile = context.join("Dockerfile");
    fs::write(
        &dockerfile,
        "FROM scratch\nADD busybox.tar /\nCOPY data /\nCMD [\"/bin/sleep\", \"infinity\"]\n",
    )?;
    let owner = fixture.build(&context, "tenant-a:v1")?;
    writeln!(OpenOptions::new().append(true).open(&dockerfile)?, "COPY other /other")?;
    let other = fixture.build(&context, "tenant-b:v1")?;
    let shared = owner.manifest["layers"][1]["digest"].as_str().context("the image has no second layer")?;
    ensure!(other.manifest["layers"][1]["digest"] == shared, "the images share no blob");

    let proxy = FaultProxy::start(fixture.registry()?.address())?;
    let other_name = through(&other.name, proxy.address());
    let node = fixture.new_node("tenants-node", "[daemon.read]\ndeadline_seconds = 8\n")?;
    let pod = node.pod("tenants")?;
    let expected = content_digest(&context.join("data/secret"))?;
    let read = |container: &str| -> Result<String> {
        node.cri().exec(container, &["/bin/busybox", "sha256sum", "/secret"])?.success()
    };
    node.cri().pull(&owner.name)?;
    let first = node.cri().run_container(&pod, &ContainerSpec::new("owner", &owner.name, &[]))?;
    ensure!(read(&first)?.starts_with(&expected), "the owner reads something else");

    // A registry that does not say it refuses no pull, and gives nothing that is cached either.
    let say =
        |status| proxy.set_rules(vec![Rule::always(&format!("/blobs/{shared}"), Failure::Status(status))]);
    say(503);
    node.cri().pull(&other_name)?;
    let second = node.cri().run_container(&pod, &ContainerSpec::new("other", &other_name, &[]))?;
    ensure!(read(&second).is_err(), "a cached blob was read that nobody had allowed");
    say(403);
    wait::until_true("the refusal is logged", ALLOWED_DEADLINE, || {
        let refused = read(&second).is_err();
        refused && node.daemon_log().contains("403")
    })?;
    ensure!(read(&first)?.starts_with(&expected), "the owner's reads suffer");

    proxy.set_rules(Vec::new());
    wait::until_true("what the own repository gives is read", ALLOWED_DEADLINE, || {
        read(&second).is_ok_and(|sum| sum.starts_with(&expected))
    })?;
    node.cri().remove_pod(&pod.id)
}
