//! A registry that asks for credentials. A pull request brings its own; what is read on demand needs the node's.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::cri::ContainerSpec;
use integration::fault_proxy::{Failure, FaultProxy, Rule};
use integration::node::NodeOptions;
use integration::servers::{DockerRegistry, DockerRegistryOptions};
use integration::{demo, peers, process};

use crate::fixture::{Fixture, through};

const USER: &str = "puller";
const PASSWORD: &str = "myPassword";
/// The password's bcrypt hash.
const HTPASSWD: &str = "puller:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC\n";

pub(crate) fn of_the_node(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("credentials")?;
    let context = demo::random_files(fixture.peers(), &dir.join("context"), &[("data", 2 << 20)])?;
    let image = fixture.build(&context, "credentials:v1")?;
    let htpasswd = dir.join("htpasswd");
    fs::write(&htpasswd, HTPASSWD)?;
    let options = DockerRegistryOptions { htpasswd: Some(htpasswd), ..DockerRegistryOptions::default() };
    let registry = DockerRegistry::start(&dir.join("registry"), &options)?;
    let name = format!("{}/credentials:v1", registry.address());
    process::run(
        Command::new(peers::system("skopeo")?)
            .args(["--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"])
            .args(["--dest-creds", &format!("{USER}:{PASSWORD}")])
            .args([format!("docker://{}", image.name), format!("docker://{name}")]),
    )?;

    // Read again whenever it is needed: a node gets its credentials while it runs.
    let docker_config = dir.join("config.json");
    let options = NodeOptions {
        registry: format!("docker_config = \"{}\"", docker_config.display()),
        ..NodeOptions::default()
    };
    let node = fixture.new_node_with("credentials-node", options)?;
    let refused = node.cri().pull_as(&name, USER, PASSWORD).err().context("the pull succeeded")?;
    let refused = format!("{refused:#}");
    ensure!(refused.contains("401") && refused.contains("cannot be read on demand"), "{refused}");

    write_docker_config(&docker_config, &registry.address().to_string())?;
    node.cri().pull_as(&name, USER, PASSWORD)?;
    let pod = node.pod("credentials")?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new("reader", &name, &[]))?;
    let sum = node.cri().exec(&container, &["/bin/busybox", "sha256sum", "/data"])?.success()?;
    let expected = integration::tree::content_digest(&context.join("data"))?;
    ensure!(sum.starts_with(&expected), "{sum}, expected {expected}");
    node.cri().remove_pod(&pod.id)
}

/// Statuses of what a node could not read, and what the pull says of them.
const REFUSALS: [(u16, &str); 3] =
    [(401, "401 Unauthorized"), (403, "403 Forbidden"), (404, "404 Not Found")];

/// Manifests, the config and the bootstrap come: what is refused is asking for the blobs that would be read later.
pub(crate) fn by_status(fixture: &Fixture) -> Result<()> {
    let image = &fixture.demo()?.name;
    let node = fixture.new_node("refused-node", "")?;
    let proxy = FaultProxy::start(fixture.registry()?.address())?;
    let name = through(image, proxy.address());
    for (status, says) in REFUSALS {
        proxy.set_rules(vec![Rule::always("/blobs/", Failure::Status(status)).method("HEAD")]);
        let refused = node.cri().pull(&name).err().with_context(|| format!("pulled in spite of {status}"))?;
        let refused = format!("{refused:#}");
        let repository = format!("registry {}, repository demo: HEAD blob sha256:", proxy.address());
        for text in ["cannot be read on demand", says, &repository] {
            ensure!(refused.contains(text), "{status}: no {text:?} in {refused}");
        }
        ensure!(!node.cri().has_image(&name)?, "{status}: the image is there");
    }
    // That says nothing of what can be read later.
    proxy.set_rules(vec![Rule::always("/blobs/", Failure::Status(503)).method("HEAD")]);
    node.cri().pull(&name)?;
    ensure!(node.cri().has_image(&name)?, "it is not there");
    Ok(())
}

fn write_docker_config(path: &Path, host: &str) -> Result<()> {
    let entry = serde_json::json!({"username": USER, "password": PASSWORD});
    Ok(fs::write(path, serde_json::json!({"auths": {host: entry}}).to_string())?)
}
