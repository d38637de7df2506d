//! An image that somebody unmounted behind the snapshotter's back.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::cri::ContainerSpec;
use integration::{demo, leftovers, process};

use crate::fixture::Fixture;

/// Containers that run are not disturbed, and the next does not start with an empty root.
pub(crate) fn is_mounted_again(fixture: &Fixture) -> Result<()> {
    let files = [("first", 1 << 20), ("second", 1 << 20)];
    let context = demo::random_files(fixture.peers(), &fixture.subdir("unmounted")?, &files)?;
    let image = fixture.build(&context, "unmounted:v1")?;
    let mut node = fixture.new_node("unmounted-node", "")?;
    let mounts = node.snapshotter()?.dir().join("root/mounts");
    node.cri().pull(&image.name)?;
    let pod = node.pod("unmounted")?;
    let running = node.cri().run_container(&pod, &ContainerSpec::new("running", &image.name, &[]))?;
    let read = |container: &str, file: &str| -> Result<()> {
        let path = format!("/{file}");
        let sum = node.cri().exec(container, &["/bin/busybox", "sha256sum", &path])?.success()?;
        let expected = integration::tree::content_digest(&context.join(file))?;
        ensure!(sum.starts_with(&expected), "{file}: {sum}, expected {expected}");
        Ok(())
    };
    read(&running, "first")?;
    for (round, option) in [None, Some("--lazy")].into_iter().enumerate() {
        let mountpoint =
            leftovers::mounts(&mounts)?.into_iter().next().context("the image is not mounted")?;
        process::run(Command::new("umount").args(option).arg(&mountpoint))?;
        let next = format!("next-{round}");
        let next = node.cri().run_container(&pod, &ContainerSpec::new(&next, &image.name, &[]))?;
        read(&next, "first")?;
        read(&running, "second")?;
    }
    node.cri().remove_pod(&pod.id)
}
