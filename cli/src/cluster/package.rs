//! `cluster save --output`: a package.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use cluster::lock::Lock;
use cluster::package::{Contents, NotPackaged, PackageTarget, cluster_image, write};
use cluster::save::SaveOptions;
use image::location::Location;
use image::platform::PlatformName;
use image::source::Source;
use registry::client::Client;

use super::args;
use super::opened::Opened;
use super::save::{ended, say};

/// Writes the package of what was opened, whose images are those of `lock`.
pub(super) async fn run(
    flags: &args::Save,
    opened: &Opened,
    client: &Client,
    lock: Lock,
    output: &Path,
) -> anyhow::Result<ExitCode> {
    let cluster = match &opened.location {
        None => None,
        Some(Location::Registry(reference)) => {
            let source = Source::open(&Location::Registry(reference.clone()), client).await?;
            Some(cluster_image(reference, &source, &flags.platform).await?)
        }
        Some(other) => {
            bail!("{other}: expected an image in a registry, or a directory, to make a package of")
        }
    };
    let lock = for_platforms(lock, &flags.platform)?;
    let is_directory = output.is_dir() || output.as_os_str().as_encoded_bytes().ends_with(b"/");
    let target = match is_directory {
        true => PackageTarget::Directory(output.to_owned()),
        false => PackageTarget::File(output.to_owned()),
    };
    let contents = Contents { cluster: cluster.as_ref(), lock: &lock, root: &opened.dir };
    let count = lock.images.len() + usize::from(cluster.is_some());
    match write(&contents, client, &target, &SaveOptions::default(), &say).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(NotPackaged::Images(error)) => ended(Err(error), count),
        Err(error) => Err(error).with_context(|| format!("writing the package {}", output.display())),
    }
}

/// The lock for some of its platforms.
fn for_platforms(mut lock: Lock, wanted: &[PlatformName]) -> anyhow::Result<Lock> {
    if wanted.is_empty() || lock.platforms == wanted {
        return Ok(lock);
    }
    for image in &mut lock.images {
        let fits = |platform: &PlatformName| wanted.iter().any(|wanted| wanted.matches(platform));
        let runs = !image.platforms.is_empty();
        image.platforms.retain(|image| fits(&image.platform));
        image.nydus.retain(|image| fits(&image.platform));
        if runs && image.platforms.is_empty() {
            let platforms: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            bail!("the lock has {} not for {}", image.reference, platforms.join(", "));
        }
    }
    lock.platforms = wanted.to_vec();
    Ok(lock)
}
