//! A registry that takes only what pods' pull secrets say: the snapshotter reads them from the API server.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::cri::ContainerSpec;
use integration::node::NodeOptions;
use integration::servers::{ApiServer, DockerRegistry, DockerRegistryOptions, NODE};
use integration::tree::content_digest;
use integration::{demo, peers, process};

use crate::fixture::Fixture;

const PASSWORD: &str = "myPassword";
/// The password's bcrypt hash.
const HASH: &str = "$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC";

pub(crate) fn of_the_pod(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("pull-secrets")?;
    // The second is larger than what is read ahead behind the first.
    let files = [("first", 2 << 20), ("second", 24 << 20)];
    let context = demo::random_files(fixture.peers(), &dir.join("context"), &files)?;
    let image = fixture.build(&context, "pull-secrets:v1")?;
    let htpasswd = dir.join("htpasswd");
    only(&htpasswd, "right")?;
    let options = DockerRegistryOptions { htpasswd: Some(htpasswd.clone()), ..Default::default() };
    let registry = DockerRegistry::start(&dir.join("registry"), &options)?;
    let address = registry.address().to_string();
    let name = format!("{address}/pull-secrets:v1");
    process::run(
        Command::new(peers::system("skopeo")?)
            .args(["--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"])
            .args(["--dest-creds", &format!("right:{PASSWORD}")])
            .args([format!("docker://{}", image.name), format!("docker://{name}")]),
    )?;
    let api = ApiServer::start(&dir.join("api"))?;
    let snapshotter = format!("kubeconfig = \"{}\"\nnode_name = \"{NODE}\"\n", api.kubeconfig().display());
    // Nothing is to come from whoever runs the tests.
    let docker_config = format!("docker_config = \"{}\"\n", dir.join("none.json").display());
    let options = NodeOptions { snapshotter, registry: docker_config, ..Default::default() };
    let mut node = fixture.new_node_with("pull-secrets-node", options)?;

    // Without a pod there is no secret: the pull is refused with the registry's words.
    let refused = node.cri().pull_as(&name, "right", PASSWORD).err().context("the pull succeeded")?;
    let refused = format!("{refused:#}");
    ensure!(refused.contains("401") && refused.contains("cannot be read on demand"), "{refused}");

    // Several secrets, of which the registry takes the third.
    for (secret, user) in [("one", "wrong"), ("two", "wronger"), ("three", "right")] {
        api.set_secret("team", secret, &address, user, PASSWORD);
    }
    api.add_pod("team", &name, &["one", "two", "missing", "three"]);
    node.cri().pull_as(&name, "right", PASSWORD)?;
    let pod = node.pod("pull-secrets")?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new("reader", &name, &[]))?;
    let read = |node: &integration::node::Node, file: &str| -> Result<()> {
        let sum =
            node.cri().exec(&container, &["/bin/busybox", "sha256sum", &format!("/{file}")])?.success()?;
        let expected = content_digest(&context.join(file))?;
        ensure!(sum.starts_with(&expected), "{file}: {sum}, expected {expected}");
        Ok(())
    };
    read(&node, "first")?;
    ensure!(api.refused().is_empty(), "a node may not ask for {:?}", api.refused());

    // The registry turns these credentials off while the container runs, and a new secret takes the place of the old ones.
    only(&htpasswd, "renewed")?;
    for secret in ["one", "two", "three"] {
        api.set_secret("team", secret, &address, "renewed", PASSWORD);
    }
    read(&node, "second")?;
    let log = node.snapshotter()?.server().log_text();
    ensure!(log.contains("looking for others"), "nothing was renewed:\n{log}");
    ensure!(!log.contains(PASSWORD), "the log shows a password");
    ensure!(!node.daemon_log().contains(PASSWORD), "the daemon's log shows a password");
    node.cri().remove_pod(&pod.id)
}

/// Lets the registry take one user alone.
fn only(htpasswd: &Path, user: &str) -> Result<()> {
    let temporary = htpasswd.with_extension("new");
    fs::write(&temporary, format!("{user}:{HASH}\n"))?;
    Ok(fs::rename(temporary, htpasswd)?)
}
