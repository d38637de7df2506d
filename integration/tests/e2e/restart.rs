//! Running containers outlive a restart and a crash of the snapshotter.

use anyhow::{Result, ensure};
use integration::cri::ContainerSpec;
use integration::demo;
use integration::tree::content_digest;

use crate::fixture::Fixture;

pub(crate) fn snapshotter_restarts(fixture: &Fixture) -> Result<()> {
    let files = [("first", 2 << 20), ("second", 2 << 20), ("third", 2 << 20)];
    let context = demo::random_files(fixture.peers(), &fixture.subdir("restart")?, &files)?;
    let image = fixture.build(&context, "restart:v1")?;
    let mut node = fixture.new_node("restart-node", "")?;
    node.cri().pull(&image.name)?;
    let pod = node.pod("restart")?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new("long", &image.name, &[]))?;
    let daemon = node.snapshotter()?.daemon_pid()?;

    for (file, crash) in [("first", false), ("second", true)] {
        let server = node.snapshotter()?.server();
        if crash {
            server.kill()?
        } else {
            server.stop()?
        }
        // Never read before: without a snapshotter it still comes from the registry.
        read_right(node.cri(), &container, file, &context)?;
        node.snapshotter()?.restart()?;
        read_right(node.cri(), &container, file, &context)?;
    }
    ensure!(node.snapshotter()?.daemon_pid()? == daemon, "the restarted snapshotter started another daemon");
    read_right(node.cri(), &container, "third", &context)?;
    // The restarted snapshotter serves containerd as before.
    let second = node.cri().run_container(&pod, &ContainerSpec::new("new", &image.name, &[]))?;
    read_right(node.cri(), &second, "first", &context)
}

fn read_right(
    cri: &integration::cri::Cri,
    container: &str,
    file: &str,
    context: &std::path::Path,
) -> Result<()> {
    let sum = cri.exec(container, &["/bin/busybox", "sha256sum", &format!("/{file}")])?.success()?;
    let expected = content_digest(&context.join(file))?;
    ensure!(sum.starts_with(&expected), "{file}: {sum}, expected {expected}");
    Ok(())
}
