//! `cluster run`, `ps`, `logs`, `rm`: clusters of an image on nodes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use cluster::describe::Description;
use cluster::launch::task::{Image, Images, Launch, Mirror, Prepare, Status};
use cluster::launch::{self, LaunchError, Place, Run, SshOptions};
use cluster::lock::Lock;
use cluster::package::Package;
use cluster::saved::{SavedAt, SavedImages};
use registry::Reference;
use registry::client::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::args::{self, Login};
use super::opened::Opened;
use crate::config::Config;
use crate::stdout::{self, note};

/// Where a cluster image has its lock.
const LOCK: &str = "images.lock";

/// What stands behind a cluster image's tag where its build saved its container images.
const IMAGES: &str = "-images";

/// Runs a cluster.
pub(super) async fn run(config: &Config, flags: args::Run) -> anyhow::Result<ExitCode> {
    let image = image(&flags)?;
    let saved_at = saved_at(&flags, &image)?;
    let mut hosts = BTreeSet::new();
    if let Image::Mounted(reference) = &image {
        hosts.insert(Reference::parse(reference)?.host().to_owned());
    }
    hosts.extend(saved_at.iter().map(|(reference, _)| reference.host().to_owned()));
    let mut reading = config.clone();
    // Read here as nodes will read it.
    let certs = flags.registry.as_ref().map(|url| mirrored(url, &hosts)).transpose()?;
    if let Some(certs) = &certs {
        certs.path().clone_into(&mut reading.registry.certs_dir);
    }
    let opened = Opened::open(&reading, &flags.source, None).await?;
    let lock = opened.dir.join(LOCK);
    let lock = if lock.is_file() { Some(Lock::read(&lock)?) } else { None };
    let images = match saved_at {
        Some((reference, sure)) => images(&reading, reference, sure, lock.as_ref()).await?,
        None => None,
    };
    drop(certs);
    let dir = launch::clusters_dir()?.join(&flags.name);
    let run = plan(&flags, image, &opened, Saved { hosts, lock, images })?;
    let kubeconfig = launch::run(&run, &dir, &say).await?;
    stdout::print(&format!("{}\n", kubeconfig.display()))?;
    Ok(ExitCode::SUCCESS)
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

/// Where container images may have been saved, and whether they are sure to be there. A build leaves them beside the tag of its
/// image, where only those can put others who can put another image there too; nobody is asked beside a digest.
fn saved_at(flags: &args::Run, image: &Image) -> anyhow::Result<Option<(Reference, bool)>> {
    match (&flags.images, image) {
        _ if flags.plain => Ok(None),
        (Some(images), _) => Ok(Some((images.clone(), true))),
        (None, Image::Mounted(reference)) => {
            let reference = Reference::parse(reference)?;
            let tag = reference.tag().filter(|_| reference.digest().is_none());
            let beside =
                tag.map(|tag| reference.repository().with_tag(&format!("{tag}{IMAGES}"))).transpose();
            Ok(beside?.map(|reference| (reference, false)))
        }
        (None, Image::Directory(_)) => Ok(None),
    }
}

/// What nodes are told of saved images, if there are any.
async fn images(
    config: &Config,
    reference: Reference,
    sure: bool,
    lock: Option<&Lock>,
) -> anyhow::Result<Option<Images>> {
    let client = Client::new(config.registry.clone())?;
    let place = SavedAt::Repository(reference.clone());
    let found = SavedImages::find(&place, &client).await;
    let Some(saved) = found.with_context(|| format!("looking for saved images at {reference}"))? else {
        if sure {
            bail!("--images {reference}: nothing was saved there");
        }
        return Ok(None);
    };
    note(&format!("container images are read lazily from {}@{}", reference.repository(), saved.digest()));
    Ok(Some(launch::images(&saved, reference.repository(), lock)?))
}

/// What nodes get: a nydus image that each mounts, or a directory of this machine's.
fn image(flags: &args::Run) -> anyhow::Result<Image> {
    let path = Path::new(&flags.source);
    if path.is_file() || Package::is_directory(path) {
        bail!("{}: a package is not run yet: bring it to a registry with `registry sync`", flags.source);
    }
    if path.is_dir() {
        if !flags.masters.is_empty() || !flags.nodes.is_empty() {
            bail!(
                "{}: a directory is run on this machine alone: push it as an image for other nodes",
                flags.source
            );
        }
        return Ok(Image::Directory(fs::canonicalize(path)?));
    }
    let reference = flags.source.strip_prefix("docker://").unwrap_or(&flags.source);
    let reference = Reference::parse(reference)
        .with_context(|| format!("{}: expected an image in a registry, or a directory", flags.source))?;
    Ok(Image::Mounted(reference.to_string()))
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
    let commands = launch::commands(&description, entrypoint, cmd);
    let prepare = Prepare {
        cluster: flags.name.clone(),
        mirrors: mirrors(flags, &saved)?,
        images: saved.images,
        image,
        hooks: description.hooks,
        environment: opened.environment.clone(),
    };
    let masters = if flags.masters.is_empty() { vec![Place::Here] } else { flags.masters.clone() };
    Ok(Run {
        prepare,
        masters,
        nodes: flags.nodes.clone(),
        ssh: ssh(&flags.login)?,
        launch: Launch { commands, seconds: flags.launch_timeout },
        program: std::env::current_exe().context("finding this program")?,
    })
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

fn ssh(login: &Login) -> anyhow::Result<SshOptions> {
    let key = login
        .key
        .as_ref()
        .map(|key| fs::canonicalize(key).with_context(|| format!("the private key {}", key.display())));
    Ok(SshOptions { user: login.user.clone(), key: key.transpose()?, password: login.password.clone() })
}

fn say(node: &str, line: &str) {
    eprintln!("{node}: {line}");
}

/// Shows all clusters.
pub(super) async fn ps(flags: args::Ps) -> anyhow::Result<ExitCode> {
    let ssh = ssh(&flags.login)?;
    let mut shown = Vec::new();
    let mut all_answer = true;
    for (name, dir) in clusters()? {
        let record = launch::Record::read(&dir)?;
        for (place, status) in launch::status(&dir, &ssh).await? {
            all_answer &= status.is_ok();
            shown.push((name.clone(), record.image.clone(), place, status));
        }
    }
    let text = if flags.json { json(&shown)? } else { table(&shown) };
    stdout::print(&text)?;
    Ok(if all_answer { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

type Shown = (String, String, Place, Result<Status, LaunchError>);

fn json(shown: &[Shown]) -> anyhow::Result<String> {
    let node = |(cluster, image, place, status): &Shown| match status {
        Ok(status) => json!({
            "cluster": cluster, "image": image, "node": place.name(), "role": status.role, "services": status.services,
        }),
        Err(error) => {
            json!({"cluster": cluster, "image": image, "node": place.name(), "error": error.to_string()})
        }
    };
    let all: Vec<Value> = shown.iter().map(node).collect();
    Ok(serde_json::to_string_pretty(&all)? + "\n")
}

fn table(shown: &[Shown]) -> String {
    let mut text = format!("{:<16}{:<24}{:<9}SERVICES\n", "CLUSTER", "NODE", "ROLE");
    for (cluster, _, place, status) in shown {
        let (role, services) = match status {
            Ok(status) => {
                let services = status.services.iter().map(|(name, state)| format!("{name} {state}"));
                (status.role.as_str(), services.collect::<Vec<_>>().join(", "))
            }
            Err(error) => ("?", error.to_string()),
        };
        text += &format!("{cluster:<16}{:<24}{role:<9}{services}\n", place.name());
    }
    text
}

/// The clusters that were run from here, with the directory of each.
fn clusters() -> anyhow::Result<Vec<(String, PathBuf)>> {
    let dir = launch::clusters_dir()?;
    let Ok(entries) = fs::read_dir(&dir) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("reading {}", dir.display()))?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    found.sort();
    Ok(found)
}

/// Shows what nodes said.
pub(super) fn logs(flags: &args::Logs) -> anyhow::Result<ExitCode> {
    let dir = launch::clusters_dir()?.join(&flags.name);
    launch::Record::read(&dir)?;
    let mut shown = 0;
    for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        let node = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let wanted = flags.node.as_ref().is_none_or(|wanted| *wanted == node);
        if wanted && path.extension().is_some_and(|extension| extension == "log") {
            let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            for line in String::from_utf8_lossy(&text).lines() {
                stdout::print(&format!("{node}: {line}\n"))?;
            }
            shown += 1;
        }
    }
    if shown == 0 {
        bail!("{}: no such node said anything", flags.node.as_deref().unwrap_or(&flags.name));
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes a cluster away.
pub(super) async fn rm(flags: args::Rm) -> anyhow::Result<ExitCode> {
    let dir = launch::clusters_dir()?.join(&flags.name);
    launch::remove(&dir, &ssh(&flags.login)?, flags.keep_images, &say).await?;
    Ok(ExitCode::SUCCESS)
}

/// Does a task on a node.
pub(super) async fn node(config: &Config) -> anyhow::Result<ExitCode> {
    let registry = config.registry.clone();
    let work = move || launch::node::work(Path::new(launch::node::NODE_DIR), &registry);
    let answer = tokio::task::spawn_blocking(work).await??;
    stdout::print(&format!("{answer}\n"))?;
    Ok(ExitCode::SUCCESS)
}
