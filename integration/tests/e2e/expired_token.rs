//! Tokens expire while containers run; what these read then is fetched with new ones.

use anyhow::{Result, ensure};
use integration::cri::ContainerSpec;
use integration::demo;
use integration::fault_proxy::FaultProxy;
use integration::tree::content_digest;

use crate::fixture::{Fixture, through};

pub(crate) fn is_renewed(fixture: &Fixture) -> Result<()> {
    let files = [("first", 2 << 20), ("second", 2 << 20), ("third", 2 << 20)];
    let context = demo::random_files(fixture.peers(), &fixture.subdir("expired")?, &files)?;
    let image = fixture.build(&context, "expired:v1")?;
    let proxy = FaultProxy::start_with_tokens(fixture.registry()?.address())?;
    let name = through(&image.name, proxy.address());
    let node = fixture.node()?;
    node.cri().pull(&name)?;
    let pod = node.pod("expired")?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new("reader", &name, &[]))?;
    // Most registries say 401 of an expired token, some say 403.
    for (file, refusal) in [("first", None), ("second", Some(401)), ("third", Some(403))] {
        if let Some(status) = refusal {
            proxy.expire_tokens(status);
        }
        let before = proxy.tokens();
        let sum = node.cri().exec(&container, &["/bin/busybox", "sha256sum", &format!("/{file}")])?;
        let sum = sum.success()?;
        let expected = content_digest(&context.join(file))?;
        ensure!(sum.starts_with(&expected), "{file}: {sum}, expected {expected}");
        ensure!(refusal.is_none() || proxy.tokens() > before, "{file} was read with an expired token");
    }
    node.cri().remove_pod(&pod.id)
}
