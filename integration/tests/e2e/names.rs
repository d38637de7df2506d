//! One image under two names, in registries of which one goes away.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::cri::ContainerSpec;
use integration::fault_proxy::{Failure, FaultProxy, Rule};
use integration::{demo, wait};

use crate::fixture::{Fixture, through};
use crate::restart::kill_daemon;

/// containerd is asked in the background.
const LEARNT_DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn all_are_read_from(fixture: &Fixture) -> Result<()> {
    let files = [("first", 1 << 20), ("second", 1 << 20)];
    let context = demo::random_files(fixture.peers(), &fixture.subdir("names")?, &files)?;
    let image = fixture.build(&context, "names:v1")?;
    let address = fixture.registry()?.address();
    let (one, other) = (FaultProxy::start(address)?, FaultProxy::start(address)?);
    let (one_name, other_name) = (through(&image.name, one.address()), through(&image.name, other.address()));
    let mut node = fixture.new_node("names-node", "")?;
    let pod = node.pod("names")?;
    let read = |node: &integration::node::Node, container: &str, file: &str| -> Result<()> {
        let path = format!("/{file}");
        let sum = node.cri().exec(container, &["/bin/busybox", "sha256sum", &path])?.success()?;
        let expected = integration::tree::content_digest(&context.join(file))?;
        ensure!(sum.starts_with(&expected), "{file}: {sum}, expected {expected}");
        Ok(())
    };
    node.cri().pull(&one_name)?;
    let first = node.cri().run_container(&pod, &ContainerSpec::new("first", &one_name, &[]))?;
    read(&node, &first, "first")?;

    node.cri().pull(&other_name)?;
    let second = node.cri().run_container(&pod, &ContainerSpec::new("second", &other_name, &[]))?;
    let snapshotter = node.snapshotter()?;
    wait::until_true("the other name is known", LEARNT_DEADLINE, || {
        snapshotter.server().log_text().contains("the image has other names")
    })?;
    // The next daemon knows both from the first moment on that it serves the image.
    kill_daemon(&mut node)?;
    let snapshotter = node.snapshotter()?;
    let backends = wait::until("the image is served again", LEARNT_DEADLINE, || {
        let status = snapshotter.status().ok();
        Ok(status.and_then(|status| Some(status["mounts"][0]["backends"].as_array()?.len())))
    })?;
    ensure!(backends == 2, "{backends} backends");
    one.set_rules(vec![Rule::always("/blobs/", Failure::Status(503))]);
    read(&node, &second, "second")?;
    read(&node, &first, "second")?;

    node.cri().remove_pod(&pod.id)
}
