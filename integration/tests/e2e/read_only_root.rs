//! A container whose root is read-only: `readOnlyRootFilesystem` of a pod.

use anyhow::{Result, ensure};
use integration::cri::ContainerSpec;
use integration::demo;
use integration::tree::content_digest;

use crate::fixture::Fixture;

pub(crate) fn is_read_and_not_written(fixture: &Fixture) -> Result<()> {
    let name = "read-only";
    let context = demo::random_files(fixture.peers(), &fixture.subdir(name)?, &[("data", 2 << 20)])?;
    let image = fixture.build(&context, &format!("{name}:v1"))?;
    let node = fixture.node()?;
    node.cri().pull(&image.name)?;
    let pod = node.pod(name)?;
    let spec = ContainerSpec::new(name, &image.name, &[]);
    let container = node.cri().run_container(&pod, &spec.read_only())?;
    let run = |command: &[&str]| node.cri().exec(&container, &[&["/bin/busybox"], command].concat());
    for command in [&["touch", "/new"][..], &["touch", "/data"], &["rm", "/data"], &["mkdir", "/bin/new"]] {
        let refused = run(command)?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(refused.code != 0 && said.contains("Read-only file system"), "{command:?}: {refused:?}");
    }
    let (sum, expected) = (run(&["sha256sum", "/data"])?.success()?, content_digest(&context.join("data"))?);
    ensure!(sum.starts_with(&expected), "{sum}, expected {expected}");
    // Another container of the image may write, and this one does not see it.
    let spec = ContainerSpec::new(&format!("{name}-not"), &image.name, &[]);
    let other = node.cri().run_container(&pod, &spec)?;
    node.cri().exec(&other, &["/bin/busybox", "touch", "/new"])?.success()?;
    ensure!(run(&["ls", "/new"])?.code != 0, "it sees what another container has written");
    node.cri().remove_pod(&pod.id)
}
