//! A nydus image that was saved for a cluster and is nothing else: a node that cannot reach its registry runs it lazily, and does not
//! hang where the registry that it was saved to stands still.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use integration::cri::{ContainerSpec, Executed};
use integration::fault_proxy::{Failure, FaultProxy, Rule};
use integration::node::Node;
use integration::process::{self, Server};
use integration::servers::START_DEADLINE;
use integration::{demo, peers, wait};
use test_support::log::address_in;

use crate::fixture::Fixture;

/// Under this name nothing can be reached but by a mirror.
const REGISTRY: &str = "registry.invalid";
/// The repositories in the embedded registry: the image's own, and the one that it is saved to.
const OWN: &str = "own-nydus";
const SAVED: &str = "saved-own-nydus";
/// How long a read on the node may take, in seconds: longer than the node's own registry waits for the one behind it.
const READ_DEADLINE_SECONDS: u64 = 15;
/// How long anything may take that is expected to happen at once.
const SOON: Duration = Duration::from_secs(60);

/// Has `certs` say that the image's registry is found at `url`.
fn found_at(certs: &Path, url: &str) -> Result<()> {
    let folder = certs.join(REGISTRY);
    fs::create_dir_all(&folder)?;
    let host = format!("[host.{url:?}]\n  capabilities = [\"pull\", \"resolve\"]\n  override_path = true\n");
    Ok(fs::write(folder.join("hosts.toml"), format!("server = \"https://{REGISTRY}\"\n{host}"))?)
}

/// Saves the image as the only one of a cluster.
fn save(dir: &Path, image: &str, registry: SocketAddr) -> Result<()> {
    let (tree, certs, config) = (dir.join("tree"), dir.join("certs.d"), dir.join("config.toml"));
    fs::create_dir(&tree)?;
    fs::write(tree.join("imageList"), format!("{image}\n"))?;
    found_at(&certs, &format!("http://{registry}/v2"))?;
    fs::write(&config, format!("[registry]\ncerts_dir = {certs:?}\n"))?;
    let mut save = Command::new(peers::nydus_cluster()?);
    save.arg("--config").arg(&config).args(["cluster", "save"]).arg(&tree);
    process::run(save.args(["--to", &format!("{registry}/{SAVED}:v1")])).map(drop)
}

/// What answers on a node for images that were saved, and where.
fn serve(dir: &Path, registry: SocketAddr) -> Result<(Server, SocketAddr)> {
    let config = dir.join("node.toml");
    fs::write(&config, "")?;
    let mut serve = Command::new(peers::nydus_cluster()?);
    serve.arg("--config").arg(&config).args(["cluster", "serve", &format!("{registry}/{SAVED}:v1")]);
    serve.arg("--root").arg(dir.join("documents")).args(["--listen", "127.0.0.1:0"]);
    let log = dir.join("serve.log");
    let mut server = Server::spawn("cluster serve", serve, log.clone())?;
    let mut listening = None;
    server.wait_ready(START_DEADLINE, || {
        listening = address_in(&fs::read_to_string(&log).unwrap_or_default(), "registry listens");
        listening.is_some()
    })?;
    Ok((server, listening.context("cluster serve is ready and does not say where")?))
}

pub(crate) fn runs_lazily(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir(OWN)?;
    let context =
        demo::random_files(fixture.peers(), &dir.join("context"), &[("data", 2 << 20), ("more", 2 << 20)])?;
    let built = fixture.build(&context, &format!("{OWN}:v1"))?;
    let registry = fixture.registry()?.address();
    let image = built.name.replace(&registry.to_string(), REGISTRY);
    save(&dir, &image, registry)?;

    let proxy = FaultProxy::start(registry)?;
    let (_serving, serving) = serve(&dir, proxy.address())?;
    let config = format!("[daemon.read]\ndeadline_seconds = {READ_DEADLINE_SECONDS}.0\n");
    let node = fixture.new_node("own-nydus-node", &config)?;
    found_at(&node.containerd().certs_dir(), &format!("http://{serving}/v2/{REGISTRY}"))?;
    let log = fixture.registry()?.access_log();
    let start = log.mark()?;
    node.cri().pull(&image)?;
    let pod = node.pod(OWN)?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new(OWN, &image, &[]))?;
    let sum = node.cri().exec(&container, &["/bin/busybox", "sha256sum", "/data"])?.success()?;
    let expected = integration::tree::content_digest(&context.join("data"))?;
    ensure!(sum.starts_with(&expected), "{sum}, expected {expected}");

    let requests = log.since(start)?;
    let reads = |repository: &str| {
        let blobs = format!("/v2/{repository}/blobs/");
        requests.iter().filter(|request| request.path.starts_with(&blobs)).collect::<Vec<_>>()
    };
    ensure!(reads(OWN).is_empty(), "its own registry was asked: {requests:#?}");
    ensure!(
        reads(SAVED).iter().any(|request| request.range.is_some()),
        "nothing came in parts: {requests:#?}"
    );
    // In a registry that answers.
    let other = demo::random_files(fixture.peers(), &dir.join("other"), &[("other", 1 << 20)])?;
    let other = fixture.build(&other, &format!("{OWN}-other:v1"))?;
    proxy.set_rules(vec![Rule::always("/blobs/", Failure::Stall)]);
    let failed =
        read_of_what_stalls(&node, &container, &proxy, &[(&image, "/data"), (&other.name, "/other")])?;
    ensure!(failed.code != 0, "{failed:?}");
    ensure!(String::from_utf8_lossy(&failed.stderr).contains("Input/output error"), "not EIO: {failed:?}");
    let (said, address) = (node.daemon_log(), proxy.address().to_string());
    ensure!(said.lines().any(|line| line.contains(&address)), "nobody says that {address} stalls:\n{said}");
    node.cri().remove_pod(&pod.id)
}

/// Reads a file whose content does not come. Meanwhile each of `images` is pulled and run, and a file of it read: of the image that stalls
/// one that the node has, and of the other one what comes from its registry.
fn read_of_what_stalls(
    node: &Node,
    container: &str,
    proxy: &FaultProxy,
    images: &[(&str, &str)],
) -> Result<Executed> {
    thread::scope(|scope| {
        let read = scope.spawn(|| node.cri().exec(container, &["/bin/busybox", "sha256sum", "/more"]));
        wait::until_true("the read waits for the registry", SOON, || proxy.held_requests() > 0)?;
        for (number, (image, file)) in images.iter().enumerate() {
            node.cri().pull(image)?;
            let pod = node.pod(&format!("{OWN}-{number}"))?;
            let container = node.cri().run_container(&pod, &ContainerSpec::new(OWN, image, &[]))?;
            node.cri().exec(&container, &["/bin/busybox", "sha256sum", file])?.success()?;
            node.cri().remove_pod(&pod.id)?;
        }
        read.join().map_err(|_| anyhow!("the thread that reads has panicked"))?
    })
}
