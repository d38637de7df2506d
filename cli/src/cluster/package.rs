//! `cluster save --output`: a package.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use cluster::lock::{Lock, Locked};
use cluster::package::{Contents, NotPackaged, PackageTarget, cluster_image, write};
use cluster::save::SaveOptions;
use cluster::saved::{SavedImages, bound};
use image::location::Location;
use image::platform::PlatformName;
use image::source::Source;
use registry::Reference;
use registry::client::Client;

use super::args;
use super::opened::Opened;
use super::save::{ended, say};
use super::saved::Candidates;

/// Writes the package of what was opened, whose images are those of `lock`; archives of them are in `root`.
pub(super) async fn run(
    flags: &args::Save,
    opened: &Opened,
    client: &Client,
    lock: Lock,
    root: &Path,
    output: &Path,
    options: &SaveOptions,
) -> anyhow::Result<ExitCode> {
    let lock = for_platforms(lock, &flags.platform)?;
    let (mut cluster, mut saved) = (None, None);
    match &opened.location {
        None => {}
        Some(Location::Registry(reference)) => {
            let source = Source::open(&Location::Registry(reference.clone()), client).await?;
            cluster = Some(cluster_image(reference, &source, &flags.platform).await?);
            if options.forms.rafs {
                saved = saved_before(reference, &source, client, &lock).await?;
            }
        }
        Some(other) => {
            bail!("{other}: expected an image in a registry, or a directory, to make a package of")
        }
    }
    let is_directory = output.is_dir() || output.as_os_str().as_encoded_bytes().ends_with(b"/");
    let target = match is_directory {
        true => PackageTarget::Directory(output.to_owned()),
        false => PackageTarget::File(output.to_owned()),
    };
    let (cluster, saved) = (cluster.as_ref(), saved.as_ref());
    let contents = Contents { cluster, lock: &lock, root, saved };
    let count = lock.images.len() + usize::from(cluster.is_some());
    match write(&contents, client, &target, options, &say).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(NotPackaged::Images(error)) => ended(Err(error), count),
        Err(error) => Err(error).with_context(|| format!("writing the package {}", output.display())),
    }
}

/// What was saved as RAFS of the images of `lock` already: what the cluster image is bound to, or else the same images beside its tag.
async fn saved_before(
    image: &Reference,
    source: &Source,
    client: &Client,
    lock: &Lock,
) -> anyhow::Result<Option<SavedImages>> {
    let bound = bound(&source.root().await?.content).with_context(|| image.to_string())?;
    let found = Candidates::of(image, &bound, None)?.saved(client).await?.map(|(saved, _)| saved);
    Ok(found.filter(|saved| saved.table().is_some() && (!bound.is_empty() || saved.lock() == lock)))
}

/// The lock for some of its platforms.
fn for_platforms(mut lock: Lock, wanted: &[PlatformName]) -> anyhow::Result<Lock> {
    if wanted.is_empty() || lock.platforms == wanted {
        return Ok(lock);
    }
    for image in &mut lock.images {
        let fits = |platform: &PlatformName| wanted.iter().any(|wanted| wanted.matches(platform));
        let runs = |image: &Locked| !(image.platforms.is_empty() && image.nydus.is_empty());
        let was_run = runs(image);
        image.platforms.retain(|image| fits(&image.platform));
        image.nydus.retain(|image| fits(&image.platform));
        if was_run && !runs(image) {
            let platforms: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            bail!("the lock has {} not for {}", image.reference, platforms.join(", "));
        }
    }
    lock.platforms = wanted.to_vec();
    Ok(lock)
}
