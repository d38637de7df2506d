//! `cluster save`: the images of a cluster image, brought to a directory or a repository.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use cluster::lock::{self, Lock, ResolveOptions};
use cluster::save::{self, Destination, Forms, LayerSpace, NotSaved, Report, SaveOptions};
use cluster::saved::bind;
use image::location::Location;
use indicatif::HumanBytes;
use registry::client::Client;
use registry::{Digest, Reference};

use super::opened::Opened;
use super::{args, images, package};
use crate::config::Config;
use crate::status::Found;
use crate::stdout::{self, note};

/// Where a cluster image has its lock, and where `COPY registry` expects its images.
const LOCK: &str = "images.lock";
const REGISTRY: &str = "registry";

/// Saves all images, with a line for each.
pub(super) async fn run(config: &Config, flags: args::Save) -> anyhow::Result<ExitCode> {
    let client = Client::new(config.registry.clone())?;
    let bound = match flags.bind {
        true => Some(Bound::find(&client, &flags.discovery.source).await?),
        false => None,
    };
    let source =
        bound.as_ref().map_or_else(|| flags.discovery.source.clone(), |bound| bound.pinned.to_string());
    let opened = Opened::open(config, &source, flags.platform.first()).await?;
    if let Some(output) = &flags.output {
        let Some(lock) = lock(config, &flags, &opened, &client).await? else {
            return Ok(Found::UnsavedImages.status());
        };
        let root = archives(config, &opened, &lock).await?;
        return package::run(&flags, &opened, &client, lock, root, output, &options(config, &flags)).await;
    }
    let destination = match &flags.to {
        Some(reference) => Destination::Repository(reference.clone()),
        None if opened.is_directory() => Destination::Directory(opened.dir.join(REGISTRY)),
        None => {
            bail!("{} is no directory: say with --to or --output where its images go", flags.discovery.source)
        }
    };
    let Some(lock) = lock(config, &flags, &opened, &client).await? else {
        return Ok(Found::UnsavedImages.status());
    };
    let cluster_image = match &opened.location {
        Some(Location::Registry(reference)) if opened.nydus => vec![reference.clone()],
        _ => Vec::new(),
    };
    let options = SaveOptions { cluster_image, ..options(config, &flags) };
    let root = archives(config, &opened, &lock).await?;
    let saved = save::save(&lock, root, &client, &destination, &options, &say).await;
    if let (Some(bound), Ok(Some(digest))) = (&bound, &saved) {
        bound.bind(&client, digest).await?;
    }
    ended(saved.map(drop), lock.images.len())
}

/// Where the archives are that images of the lock come from.
async fn archives<'a>(config: &Config, opened: &'a Opened, lock: &Lock) -> anyhow::Result<&'a Path> {
    opened.archives(config, lock.images.iter().filter_map(|image| image.archive.as_ref())).await
}

fn options(config: &Config, flags: &args::Save) -> SaveOptions {
    SaveOptions {
        forms: Forms { rafs: !flags.no_rafs, plain: flags.plain },
        layer_space: LayerSpace::new(config.cluster.save_spool_bytes),
        base: flags.base.clone(),
        ..SaveOptions::default()
    }
}

/// A cluster image whose tag is to lead to one that is bound to what is saved.
struct Bound {
    name: Reference,
    /// What its tag led to before.
    pinned: Reference,
}

impl Bound {
    async fn find(client: &Client, source: &str) -> anyhow::Result<Self> {
        let name = target(source.strip_prefix("docker://").unwrap_or(source));
        let name = name.map_err(anyhow::Error::msg).context("--bind")?;
        let found = client.head_manifest(&name).await?;
        let digest = found.with_context(|| format!("there is no image {name}"))?.digest().clone();
        Ok(Self { pinned: name.at_digest(digest), name })
    }

    async fn bind(&self, client: &Client, images: &Digest) -> anyhow::Result<()> {
        let (described, root) = client.manifest(&self.pinned).await?;
        let root = bind(&root, std::slice::from_ref(images)).with_context(|| self.name.to_string())?;
        let now = client.head_manifest(&self.name).await?;
        if now.is_none_or(|now| Some(now.digest()) != self.pinned.digest()) {
            bail!("{} was moved while its images were saved: it is not bound to them", self.name);
        }
        let digest = registry::digest::sha256(&root);
        client.put_manifest(&self.name, described.media_type().as_ref(), root).await?;
        note(&format!("{} is {digest} now, bound to {images}", self.name));
        Ok(())
    }
}

/// How the command ends: images that are not saved are named.
pub(super) fn ended(saved: Result<(), NotSaved>, images: usize) -> anyhow::Result<ExitCode> {
    match saved {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(NotSaved::Images(failed)) => {
            for failed in &failed {
                note(&format!("error: {failed}"));
            }
            note(&format!("{} of {images} images are not saved", failed.len()));
            Ok(Found::UnsavedImages.status())
        }
        Err(error) => Err(error).with_context(|| format!("saving {images} images")),
    }
}

/// A line an image. That nobody reads them is no reason to stop saving.
pub(super) fn say(report: &Report) {
    let Report { image, bytes, fetched, .. } = report;
    let _ = stdout::print(&format!("{image}  {}, {} fetched\n", HumanBytes(*bytes), HumanBytes(*fetched)));
}

/// The lock that is named or that the image has; without one, what is asked for now. `None`: images may be missing.
async fn lock(
    config: &Config,
    flags: &args::Save,
    opened: &Opened,
    client: &Client,
) -> anyhow::Result<Option<Lock>> {
    let own = opened.dir.join(LOCK);
    let path = flags.lock.clone().or_else(|| own.is_file().then_some(own));
    if let Some(path) = path {
        if !flags.platform.is_empty() && flags.output.is_none() {
            bail!("{} says for which platforms: --platform is for where there is no lock", path.display());
        }
        return Ok(Some(Lock::read(&path)?));
    }
    let found = images::discover(config, &flags.discovery, opened).await?;
    let options = ResolveOptions { platforms: flags.platform.clone(), ..ResolveOptions::default() };
    let root =
        opened.archives(config, found.images.iter().filter_map(|image| image.archive.as_ref())).await?;
    let resolved = lock::resolve(&found, root, client, &options, None).await.context("looking up images")?;
    for warning in found.warnings.iter().chain(&resolved.warnings) {
        note(&format!("warning: {warning}"));
    }
    let problems: Vec<_> = found.problems.iter().chain(&resolved.problems).collect();
    for problem in &problems {
        note(&format!("error: {problem}"));
    }
    if !problems.is_empty() {
        note("nothing is saved: images may be missing");
        return Ok(None);
    }
    Ok(Some(resolved.lock))
}

/// A reference with a tag, to save to.
pub(super) fn target(text: &str) -> Result<Reference, String> {
    let reference = Reference::parse(text).map_err(|error| error.to_string())?;
    match (reference.tag(), reference.digest()) {
        (Some(_), None) => Ok(reference),
        _ => Err(format!("{text:?}: expected a reference with a tag and without a digest")),
    }
}
