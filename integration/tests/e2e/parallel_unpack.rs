//! Layers unpacked at the same time by containerd, which puts them on each other when it commits them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use integration::cri::ContainerSpec;
use integration::node::NodeOptions;
use integration::{demo, oci_layout};

use crate::fixture::Fixture;

/// A nydus image and a plain one, whose upper layer hides a file of the lower one.
pub(crate) fn layers_keep_their_parents(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("parallel")?;
    let options = NodeOptions { capabilities: vec!["rebase"], ..NodeOptions::default() };
    let node = fixture.new_node_with("parallel-node", options)?;
    let pod = node.pod("parallel")?;

    let context =
        demo::random_files(fixture.peers(), &dir.join("nydus"), &[("one", 1 << 20), ("two", 1 << 20)])?;
    let image = fixture.build(&context, "parallel:v1")?;
    node.cri().pull(&image.name)?;
    let nydus = node.cri().run_container(&pod, &ContainerSpec::new("nydus", &image.name, &[]))?;
    for file in ["one", "two"] {
        let sum = node.cri().exec(&nydus, &["/bin/busybox", "sha256sum", &format!("/{file}")])?.success()?;
        let expected = integration::tree::content_digest(&context.join(file))?;
        ensure!(sum.starts_with(&expected), "{file}: {sum}, expected {expected}");
    }

    let (lower, upper) = (dir.join("lower.tar"), dir.join("upper.tar"));
    layer(&lower, &[("etc/kept", "kept"), ("etc/replaced", "old"), ("etc/removed", "removed")])?;
    layer(&upper, &[("etc/replaced", "new"), ("etc/.wh.removed", "")])?;
    let layout = dir.join("plain");
    let busybox = fixture.peers().pause_rootfs()?;
    let layers = [&busybox, &lower, &upper].map(PathBuf::as_path);
    oci_layout::write(&layout, &layers, &["/bin/sleep", "infinity"], &[oci_layout::architecture()])?;
    let plain = format!("{}/parallel-plain:v1", fixture.registry()?.address());
    oci_layout::copy(&format!("oci:{}", layout.display()), &format!("docker://{plain}"))?;
    node.cri().pull(&plain)?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new("plain", &plain, &[]))?;
    let script = "cd /etc && cat kept replaced && ! test -e removed";
    let said = node.cri().exec(&container, &["/bin/busybox", "sh", "-c", script])?.success()?;
    ensure!(said == "keptnew", "{said}");

    node.cri().remove_pod(&pod.id)?;
    node.cri().remove_image(&image.name)?;
    node.cri().remove_image(&plain)
}

/// Writes a layer of directories and files with content.
pub(crate) fn layer(path: &Path, files: &[(&str, &str)]) -> Result<()> {
    let mut archive = tar::Builder::new(File::create(path)?);
    let mut directory = tar::Header::new_gnu();
    directory.set_entry_type(tar::EntryType::Directory);
    directory.set_mode(0o755);
    directory.set_size(0);
    archive.append_data(&mut directory, "etc/", std::io::empty())?;
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content.as_bytes())?;
    }
    archive.finish()?;
    ensure!(fs::metadata(path)?.len() > 0, "{} is empty", path.display());
    Ok(())
}
