//! A registry that speaks HTTPS, with a certificate of the operator's own authority, and is known by a name: the worker, which has
//! no files, is given the authority and the names of hosts.

use std::fs;

use anyhow::{Result, ensure};
use integration::cri::ContainerSpec;
use integration::demo;
use integration::servers::EmbeddedRegistry;
use integration::tree::content_digest;
use test_support::{SignedBy, make_certificate};

use crate::fixture::{Fixture, nydus_layers};

/// Looked up in `/etc/hosts`.
const HOST: &str = "localhost";

pub(crate) fn is_read_from(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("https")?;
    let context = demo::random_files(fixture.peers(), &dir.join("context"), &[("data", 2 << 20)])?;
    let image = fixture.build(&context, "https:v1")?;
    let name = format!("subjectAltName=DNS:{HOST}");
    make_certificate(&dir, "ca", "/CN=ours", &name, SignedBy::Itself);
    make_certificate(&dir, "server", "/CN=registry", &name, SignedBy::Authority);
    let root = fixture.registry()?.root();
    let registry = EmbeddedRegistry::serve_https(&dir.join("registry"), root, &dir, "server")?;
    let host = format!("{HOST}:{}", registry.address().port());
    let node = fixture.new_node("https-node", "")?;
    let folder = node.containerd().certs_dir().join(&host);
    fs::create_dir_all(&folder)?;
    let ca = dir.join("ca.crt");
    fs::write(folder.join("hosts.toml"), format!("server = \"https://{host}\"\nca = {ca:?}\n"))?;

    let name = image.name.replace(&fixture.registry()?.address().to_string(), &host);
    node.cri().pull(&name)?;
    let pod = node.pod("https")?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new("https", &name, &[]))?;
    let start = registry.access_log().mark()?;
    let sum = node.cri().exec(&container, &["/bin/busybox", "sha256sum", "/data"])?.success()?;
    let expected = content_digest(&context.join("data"))?;
    ensure!(sum.starts_with(&expected), "{sum}, expected {expected}");
    let (blobs, _) = nydus_layers(&image.manifest)?;
    let requests = registry.access_log().since(start)?;
    let is_read = |blob: &String| requests.iter().any(|request| request.reads_blob(blob));
    ensure!(blobs.iter().any(is_read), "nothing was read from there: {requests:#?}");
    node.cri().remove_pod(&pod.id)
}
