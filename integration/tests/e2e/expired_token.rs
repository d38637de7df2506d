//! Credentials expire while containers run; what these read then is fetched with new ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::cri::{ContainerSpec, Pod};
use integration::demo;
use integration::fault_proxy::{Failure, FaultProxy, Rule, USER};
use integration::node::{Node, NodeOptions};
use integration::tree::content_digest;

use crate::fixture::{Fixture, through};

/// How long tokens are good while containers read all the time: longer than a busy machine takes to use a new one …
const LIFE: Duration = Duration::from_secs(2);
/// … how fast each answer comes, in bytes a second, so that many of them end: a chunk of a mebibyte takes longer than a token lives …
const BANDWIDTH: u64 = 500_000;
/// … and what reading everything may take.
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) fn is_renewed(fixture: &Fixture) -> Result<()> {
    let files = [("first", 2 << 20), ("second", 2 << 20), ("third", 2 << 20), ("fourth", 2 << 20)];
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
        read_right(node, &container, &context, file)?;
        ensure!(refusal.is_none() || proxy.tokens() > before, "{file} was read with an expired token");
    }
    // What is on its way when it expires comes, and the rest with another one.
    let cut = Rule::always("/blobs/", Failure::CutDownloadAndExpire(100_000)).method("GET").once();
    proxy.set_rules(vec![cut]);
    let before = (proxy.tokens(), proxy.failed_requests());
    read_right(node, &container, &context, "fourth")?;
    let after = (proxy.tokens(), proxy.failed_requests());
    ensure!(after.0 > before.0 && after.1 > before.1, "nothing was cut, or no token asked for");
    node.cri().remove_pod(&pod.id)
}

/// Neither of containers that read all the time, over the end of the snapshotter too, nor behind registries like ECR: there
/// it is the password that ends, and 403 says so.
pub(crate) fn is_never_noticed(fixture: &Fixture) -> Result<()> {
    let dir = fixture.subdir("expiring")?;
    let files = ["a", "b", "c", "d"].map(|file| (file, 3 << 20));
    let context = demo::random_files(fixture.peers(), &dir.join("context"), &files)?;
    let image = fixture.build(&context, "expiring:v1")?;
    let docker_config = dir.join("config.json");
    let options = NodeOptions {
        registry: format!("docker_config = \"{}\"", docker_config.display()),
        ..NodeOptions::default()
    };
    let mut node = fixture.new_node_with("expiring-node", options)?;
    let pod = node.pod("expiring")?;
    let tokens = FaultProxy::start_with_tokens(fixture.registry()?.address())?;
    let name = through(&image.name, tokens.address());
    node.cri().pull(&name)?;
    under_load(&mut node, &pod, &tokens, &name, &context)?;
    passwords_end(fixture, &mut node, &pod, &dir, &docker_config)?;
    failed_nowhere(&node)
}

/// A container of an image whose registry takes one password.
struct Guarded {
    context: PathBuf,
    container: String,
}

/// Two registries, each with a password of its own, which one file names: both end at the same time, and then one alone.
fn passwords_end(
    fixture: &Fixture,
    node: &mut Node,
    pod: &Pod,
    dir: &Path,
    docker_config: &Path,
) -> Result<()> {
    let upstream = fixture.registry()?.address();
    let registries = [FaultProxy::start_with_password(upstream)?, FaultProxy::start_with_password(upstream)?];
    // From now on what one takes the other does not take yet, or not any longer.
    registries[1].expire_tokens(401);
    log_in(docker_config, &registries)?;
    let mut guarded = Vec::new();
    for (number, registry) in registries.iter().enumerate() {
        let name = format!("password-{number}");
        let files = ["e", "f", "g", "h"].map(|file| (file, 3 << 20));
        let context = demo::random_files(fixture.peers(), &dir.join(&name), &files)?;
        let image = through(&fixture.build(&context, &format!("{name}:v1"))?.name, registry.address());
        node.cri().pull_as(&image, USER, &registry.password())?;
        let container = node.cri().run_container(pod, &ContainerSpec::new(&name, &image, &[]))?;
        guarded.push(Guarded { context, container });
    }
    for (file, refusals) in
        [("e", [None, None]), ("f", [Some(403); 2]), ("g", [Some(401); 2]), ("h", [None, Some(403)])]
    {
        let refused = registries[0].refused_requests();
        for (registry, refusal) in registries.iter().zip(refusals) {
            refusal.into_iter().for_each(|status| registry.expire_tokens(status));
        }
        log_in(docker_config, &registries)?;
        for Guarded { context, container } in &guarded {
            read_right(node, container, context, file)?;
        }
        ensure!(
            refusals[0].is_some() || registries[0].refused_requests() == refused,
            "{file}: the first registry was asked with another password than its own"
        );
    }
    // A file that changes is looked at without that too.
    let noticed = node.snapshotter()?.server().log_text().contains("it is read in another way from now on");
    for registry in &registries {
        ensure!(registry.refused_requests() > 0 || noticed, "no password has ended");
    }
    Ok(())
}

/// The passwords that are good now.
fn log_in(docker_config: &Path, registries: &[FaultProxy]) -> Result<()> {
    let entry = |registry: &FaultProxy| {
        let entry = serde_json::json!({"username": USER, "password": registry.password()});
        (registry.address().to_string(), entry)
    };
    let auths: serde_json::Map<_, _> = registries.iter().map(entry).collect();
    let temporary = docker_config.with_extension("new");
    fs::write(&temporary, serde_json::json!({"auths": auths}).to_string())?;
    // Never half of it, as a log-in does it too.
    Ok(fs::rename(temporary, docker_config)?)
}

/// Containers read while tokens end every moment, and the snapshotter, which renews them, is killed.
fn under_load(node: &mut Node, pod: &Pod, proxy: &FaultProxy, image: &str, context: &Path) -> Result<()> {
    let orders = [["a", "b", "c", "d"], ["d", "c", "b", "a"]];
    proxy.set_rules(vec![Rule::always("/blobs/", Failure::Bandwidth(BANDWIDTH)).method("GET")]);
    proxy.let_tokens_live(LIFE);
    let mut readers = Vec::new();
    for files in orders {
        let script = format!(
            "for f in {}; do s=$(dd if=/$f bs=64k iflag=direct 2>/error | sha256sum); echo $f ${{s%% *}}; done",
            files.join(" ")
        );
        let spec = ContainerSpec::new(files[0], image, &["/bin/busybox", "sh", "-c", &script]);
        readers.push((node.cri().run_container(pod, &spec)?, files));
    }
    node.snapshotter()?.server().kill()?;
    node.restart_snapshotter()?;
    for (reader, files) in readers {
        node.cri().wait_exit(&reader, PATIENCE)?;
        let digest = |file: &str| content_digest(&context.join(file));
        let lines: Result<String> =
            files.iter().map(|file| Ok(format!("{file} {}\n", digest(file)?))).collect();
        let (said, expected) = (node.cri().logs(&reader)?, lines?);
        ensure!(said == expected, "the container says {said}, expected {expected}");
    }
    let (tokens, refused) = (proxy.tokens(), proxy.refused_requests());
    ensure!(tokens > 3 && refused > 2, "{tokens} tokens, {refused} requests with one that had expired");
    failed_nowhere(node)
}

fn failed_nowhere(node: &Node) -> Result<()> {
    let log = node.daemon_log();
    ensure!(!log.contains("reads of it fail"), "a read failed: {log}");
    Ok(())
}

fn read_right(node: &Node, container: &str, context: &Path, file: &str) -> Result<()> {
    let sum = node.cri().exec(container, &["/bin/busybox", "sha256sum", &format!("/{file}")])?.success()?;
    let expected = content_digest(&context.join(file))?;
    ensure!(sum.starts_with(&expected), "{file}: {sum}, expected {expected}");
    Ok(())
}
