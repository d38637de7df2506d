//! containerd's settings of registries hold for what is read on demand as well.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::cri::ContainerSpec;
use integration::fault_proxy::{Failure, FaultProxy, Rule};
use integration::{demo, wait};

use crate::fixture::Fixture;

/// Under this name nothing can be reached but by a mirror.
const REGISTRY: &str = "registry.invalid";

/// Files are looked at every few seconds.
const NOTICED_DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn mirrors_are_read_from(fixture: &Fixture) -> Result<()> {
    let name = "certs";
    let context = demo::random_files(fixture.peers(), &fixture.subdir(name)?, &[("data", 2 << 20)])?;
    let image = fixture.build(&context, "certs:v1")?;
    let node = fixture.new_node("certs-node", "")?;
    let folder = node.containerd().certs_dir().join(REGISTRY);
    fs::create_dir_all(&folder)?;
    let address = fixture.registry()?.address();
    let hosts = format!("[host.\"http://{address}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    fs::write(folder.join("hosts.toml"), format!("server = \"https://{REGISTRY}\"\n{hosts}"))?;

    let mirrored = image.name.replace(&address.to_string(), REGISTRY);
    node.cri().pull(&mirrored)?;
    let pod = node.pod(name)?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new(name, &mirrored, &[]))?;
    let sum = node.cri().exec(&container, &["/bin/busybox", "sha256sum", "/data"])?.success()?;
    let expected = integration::tree::content_digest(&context.join("data"))?;
    ensure!(sum.starts_with(&expected), "{sum}, expected {expected}");
    node.cri().remove_pod(&pod.id)
}

/// The settings change while an image is mounted.
pub(crate) fn changes_are_noticed(fixture: &Fixture) -> Result<()> {
    let name = "certs-changed";
    // The second is larger than what is read ahead behind the first.
    let files = [("first", 2 << 20), ("second", 24 << 20)];
    let context = demo::random_files(fixture.peers(), &fixture.subdir(name)?, &files)?;
    let image = fixture.build(&context, &format!("{name}:v1"))?;
    let address = fixture.registry()?.address();
    let (old, new) = (FaultProxy::start(address)?, FaultProxy::start(address)?);
    let mut node = fixture.new_node(&format!("{name}-node"), "")?;
    let folder = node.containerd().certs_dir().join(REGISTRY);
    fs::create_dir_all(&folder)?;
    let point_to = |mirror: &FaultProxy| {
        let hosts = format!("server = \"https://{REGISTRY}\"\n[host.\"http://{}\"]\n", mirror.address());
        fs::write(folder.join("hosts.toml"), hosts)
    };
    point_to(&old)?;
    let mirrored = image.name.replace(&address.to_string(), REGISTRY);
    node.cri().pull(&mirrored)?;
    let pod = node.pod(name)?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new(name, &mirrored, &[]))?;
    let read = |node: &integration::node::Node, file: &str| -> Result<()> {
        let sum =
            node.cri().exec(&container, &["/bin/busybox", "sha256sum", &format!("/{file}")])?.success()?;
        let expected = integration::tree::content_digest(&context.join(file))?;
        ensure!(sum.starts_with(&expected), "{file}: {sum}, expected {expected}");
        Ok(())
    };
    read(&node, "first")?;
    old.set_rules(vec![Rule::always("/", Failure::Status(404))]);
    point_to(&new)?;
    let snapshotter = node.snapshotter()?;
    wait::until_true("the change is handed out", NOTICED_DEADLINE, || {
        snapshotter.server().log_text().contains("it is read in another way from now on")
    })?;
    read(&node, "second")?;
    node.cri().remove_pod(&pod.id)
}
