//! `cluster run`: a cluster of an image on nodes, and the side of a node.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use cluster::describe::Description;
use cluster::discover;
use cluster::launch::task::{Image, Images, Launch, Mirror, Prepare};
use cluster::launch::{self, Place, Run, SshOptions};
use cluster::lock::Lock;
use cluster::package::Package;
use cluster::saved::bound;
use registry::client::Client;
use registry::{Digest, Reference};
use tempfile::TempDir;

use super::args::{self, Login, Tree};
use super::opened::Opened;
use super::saved::Candidates;
use crate::config::Config;
use crate::shutdown;
use crate::stdout::{self, note};

/// Where a cluster image has its lock.
const LOCK: &str = "images.lock";

/// Runs a cluster.
pub(super) async fn run(config: &Config, flags: args::Run) -> anyhow::Result<ExitCode> {
    let source = ClusterImageSource::of(config, &flags)?;
    let mut hosts: BTreeSet<String> = flags.images.iter().map(|images| images.host().to_owned()).collect();
    if let ClusterImageSource::Registry(reference) = &source {
        hosts.insert(reference.host().to_owned());
    }
    let mut reading = config.clone();
    // Read here as nodes will read it.
    let certs = flags.registry.as_ref().map(|url| mirrored(url, &hosts)).transpose()?;
    if let Some(certs) = &certs {
        certs.path().clone_into(&mut reading.registry.certs_dir);
    }
    let client = Client::new(reading.registry.clone())?;
    let said = flags.images.clone().map(Candidates::Sure);
    let (opened, image, candidates) = match &source {
        ClusterImageSource::Directory(path) => (
            Opened::open(&reading, &flags.source, None).await?,
            Image::Directory(path.clone()),
            said.unwrap_or(Candidates::Nowhere),
        ),
        ClusterImageSource::Package(package) => {
            let opened = Opened::open(&reading, &flags.source, None).await?;
            let image = of_registry(&opened, package.image());
            let candidates = match said {
                Some(said) => said,
                None => Candidates::of_package(package, &client, flags.plain).await?,
            };
            (opened, image, candidates)
        }
        ClusterImageSource::Registry(reference) => {
            let (pinned, bound) = pinned(&client, reference).await?;
            let candidates = match flags.plain {
                true => Candidates::Nowhere,
                false => Candidates::of(reference, &bound, flags.images.as_ref())?,
            };
            let opened = Opened::open(&reading, &pinned.to_string(), None).await?;
            let image = of_registry(&opened, &pinned);
            (opened, image, candidates)
        }
    };
    let lock = opened.dir.join(LOCK);
    let lock = if lock.is_file() { Some(Lock::read(&lock)?) } else { None };
    let images = candidates.find(&client, lock.as_ref()).await?;
    drop(certs);
    let dir = launch::clusters_dir()?.join(&flags.name);
    let mut run = plan(&flags, image, &opened, Saved { hosts, lock, images })?;
    run.prepare.rendered = rendered(config, &opened).await?;
    if let ClusterImageSource::Package(package) = source {
        run.package = Some(*package);
    }
    let kubeconfig = launch::run(&run, &dir, &say).await?;
    stdout::print(&format!("{}\n", kubeconfig.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// The image by its digest, so that all nodes have the same one, also after it got another under its tag; and the saved images that it is
/// bound to.
async fn pinned(client: &Client, reference: &Reference) -> anyhow::Result<(Reference, Vec<Digest>)> {
    let (descriptor, root) =
        client.manifest(reference).await.with_context(|| format!("looking up {reference}"))?;
    let bound = bound(&root).with_context(|| reference.to_string())?;
    Ok((reference.at_digest(descriptor.digest().clone()), bound))
}

/// What nodes get of an image in a registry, or as in one.
fn of_registry(opened: &Opened, pinned: &Reference) -> Image {
    match opened.nydus {
        true => Image::Mounted(pinned.to_string()),
        false => Image::Converted(pinned.to_string()),
    }
}

/// A folder of `hosts.toml` files by which `hosts` are read from `url`.
fn mirrored(url: &str, hosts: &BTreeSet<String>) -> anyhow::Result<TempDir> {
    let certs = tempfile::tempdir().context("making a temporary directory")?;
    for host in hosts {
        let mirror = mirror(url, host);
        let folder = certs.path().join(&mirror.host);
        fs::create_dir(&folder)?;
        fs::write(folder.join("hosts.toml"), format!("[host.{:?}]\n  override_path = true\n", mirror.url))?;
    }
    Ok(certs)
}

/// Where the cluster image is.
enum ClusterImageSource {
    /// In a registry, where each node gets it from.
    Registry(Reference),
    /// In a package, which nodes of the control plane serve.
    Package(Box<launch::PackageSource>),
    /// A directory of this machine's.
    Directory(PathBuf),
}

impl ClusterImageSource {
    fn of(config: &Config, flags: &args::Run) -> anyhow::Result<Self> {
        let path = Path::new(&flags.source);
        if launch::is_package(path) {
            let package = Package::open(path, &config.registry.upload.spool_dir)?;
            return Ok(Self::Package(Box::new(launch::PackageSource::of(&package)?)));
        }
        if path.is_dir() {
            if !flags.masters.is_empty() || !flags.nodes.is_empty() {
                bail!(
                    "{}: a directory is run on this machine alone: push it as an image for other nodes",
                    flags.source
                );
            }
            return Ok(Self::Directory(fs::canonicalize(path)?));
        }
        let reference = flags.source.strip_prefix("docker://").unwrap_or(&flags.source);
        let reference = Reference::parse(reference).with_context(|| {
            format!("{}: expected an image in a registry, a package, or a directory", flags.source)
        })?;
        Ok(Self::Registry(reference))
    }
}

/// What is known of the cluster's container images.
struct Saved {
    /// The registries of the cluster image and of what was saved.
    hosts: BTreeSet<String>,
    lock: Option<Lock>,
    images: Option<Images>,
}

fn plan(flags: &args::Run, image: Image, opened: &Opened, saved: Saved) -> anyhow::Result<Run> {
    let metadata = opened.dir.join("Metadata");
    let metadata = if metadata.is_file() { Some(fs::read_to_string(metadata)?) } else { None };
    let description = Description::read(&opened.labels, &opened.annotations, metadata.as_deref())?;
    let [entrypoint, cmd] = &opened.command;
    for reason in launch::not_run(description.hooks.keys()) {
        note(&format!("warning: {reason}"));
    }
    let commands = launch::commands(&description, entrypoint, cmd);
    let prepare = Prepare {
        cluster: flags.name.clone(),
        mirrors: mirrors(flags, &saved)?,
        package: None,
        serving: Vec::new(),
        images: saved.images,
        plain: flags.plain,
        keep_containerd: flags.keep_containerd,
        first: false,
        image,
        hooks: description.hooks,
        environment: opened.environment.clone(),
        rendered: BTreeMap::new(),
    };
    let masters = if flags.masters.is_empty() { vec![Place::Here] } else { flags.masters.clone() };
    Ok(Run {
        prepare,
        package: None,
        masters,
        endpoint: flags.endpoint.clone(),
        nodes: flags.nodes.clone(),
        ssh: ssh(&flags.login)?,
        launch: Launch { commands, seconds: flags.launch_timeout },
        program: std::env::current_exe().context("finding this program")?,
    })
}

/// What nodes get in the place of the image's templates.
async fn rendered(config: &Config, opened: &Opened) -> anyhow::Result<BTreeMap<String, String>> {
    let options = discover::Options {
        environment: opened.environment.clone(),
        helm: config.cluster.helm.clone(),
        helm_deadline: Duration::from_secs(config.cluster.helm_seconds),
        ..Default::default()
    };
    discover::rendered(&opened.dir, &options).await.context("rendering the image's templates")
}

/// A mirror of each host that the lock names, and of those of the cluster image and of what was saved.
fn mirrors(flags: &args::Run, saved: &Saved) -> anyhow::Result<Vec<Mirror>> {
    let Some(url) = &flags.registry else { return Ok(Vec::new()) };
    let Some(lock) = &saved.lock else {
        bail!("{} has no {LOCK}, which says whose images --registry answers", flags.source);
    };
    let of_lock = lock.images.iter().map(|image| image.reference.host().to_owned());
    let hosts: BTreeSet<String> = saved.hosts.iter().cloned().chain(of_lock).collect();
    Ok(hosts.iter().map(|host| mirror(url, host)).collect())
}

fn mirror(url: &str, host: &str) -> Mirror {
    Mirror { host: host.to_owned(), url: format!("{}/{host}", url.trim_end_matches('/')) }
}

pub(super) fn ssh(login: &Login) -> anyhow::Result<SshOptions> {
    let key = login
        .key
        .as_ref()
        .map(|key| fs::canonicalize(key).with_context(|| format!("the private key {}", key.display())));
    Ok(SshOptions { user: login.user.clone(), key: key.transpose()?, password: login.password.clone() })
}

pub(super) fn say(node: &str, line: &str) {
    note(&format!("{node}: {line}"));
}

/// Does a task on a node.
pub(super) async fn node(config: &Config) -> anyhow::Result<ExitCode> {
    let registry = config.registry.clone();
    let work = move || launch::node::work(Path::new(launch::node::NODE_DIR), &registry);
    let answer = tokio::task::spawn_blocking(work).await??;
    stdout::print(&format!("{answer}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// Lays a node's tree, until what it lies on is gone, or a signal.
pub(super) async fn tree(flags: &Tree) -> anyhow::Result<ExitCode> {
    let laid = launch::node::lay_tree(&flags.dir, &flags.image, service::manager::ready);
    shutdown::on_signal()?.run_until_cancelled(laid).await.transpose()?;
    Ok(ExitCode::SUCCESS)
}
