//! containerd's settings of registries hold for what is read on demand as well.

use std::fs;

use anyhow::{Result, ensure};
use integration::cri::ContainerSpec;
use integration::demo;

use crate::fixture::Fixture;

/// Under this name nothing can be reached but by a mirror.
const REGISTRY: &str = "registry.invalid";

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
