//! Where an image that a command works on comes from: a registry, an OCI layout, or files.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use image::document::Manifest;
use image::files::fetch_bootstrap;
use image::location::Location;
use image::platform::PlatformName;
use image::source::Source;
use rafs::bootstrap::Bootstrap;
use registry::client::{Client, ClientConfig};
use registry::reference::Reference;
use tempfile::TempDir;

use super::kept::Kept;
use super::progress::Progress;
use crate::args;

/// A bootstrap on disk and the place that its blobs are in.
pub(super) struct Located {
    /// The image as the user named it, for messages.
    pub(super) name: String,
    /// The bootstrap's file.
    pub(super) bootstrap: PathBuf,
    /// Where the blobs are.
    pub(super) blobs: BlobsPlace,
    /// The image's manifest, if it has one.
    pub(super) manifest: Option<Manifest>,
    /// Holds a bootstrap that was fetched and is not kept.
    _directory: Option<TempDir>,
}

impl Located {
    /// Opens the bootstrap. Errors name the image, for the file may be a temporary one.
    pub(super) fn open(&self) -> anyhow::Result<Bootstrap> {
        Ok(Bootstrap::open_as(&self.bootstrap, &self.name)?)
    }
}

/// Where an image's blobs are.
pub(super) enum BlobsPlace {
    /// In the repository of this reference.
    Registry(Box<(Client, Reference)>),
    /// In a directory, each under its hexadecimal digest.
    Directory(PathBuf),
    /// In an archive, read where they lie.
    Archive(Source),
    /// Not said.
    Unknown,
}

/// Where the bootstrap is among the files of an image, and where its blobs.
pub(super) const BOOTSTRAP_FILE: &str = "image.boot";
const BLOBS_FOLDER: &str = "blobs";

/// Finds the image; one in a registry or a layout has its bootstrap fetched. The bootstrap of an image that its digest names is kept in `keep`,
/// the directory of a cache, and the registry is not asked for it again; nobody knows its manifest then.
pub(super) async fn locate(
    source: &args::Source,
    keep: Option<&Path>,
    client: &ClientConfig,
    progress: &Progress,
) -> anyhow::Result<Located> {
    let (path, name) = (Path::new(&source.image), source.image.clone());
    let given = source.blobs.clone().map(BlobsPlace::Directory);
    // A file that is there is meant, also where its name could be a reference. What can only be a path is refused before a
    // registry is asked, or a typing mistake would be told as a host that does not exist.
    if path.is_file() {
        let blobs = given.unwrap_or(BlobsPlace::Unknown);
        return Ok(Located { name, bootstrap: path.to_owned(), blobs, manifest: None, _directory: None });
    }
    if path.is_absolute() || source.image.starts_with("./") || source.image.starts_with("../") {
        bail!(
            "{}: no such file; expected a bootstrap, or a reference such as registry.example/app:v1",
            source.image
        );
    }
    let location: Location = source.image.parse()?;
    if let Location::Files(folder) = &location {
        let blobs = given.unwrap_or_else(|| BlobsPlace::Directory(folder.join(BLOBS_FOLDER)));
        let bootstrap = folder.join(BOOTSTRAP_FILE);
        return Ok(Located { name, bootstrap, blobs, manifest: None, _directory: None });
    }
    let client = Client::new(client.clone())?;
    let image = Source::open(&location, &client).await?;
    let platform = source.platform.as_deref().map_or_else(|| Ok(PlatformName::host()), str::parse)?;
    let kept = keep.and_then(|cache| Kept::place(cache, &location, &platform));
    let (bootstrap, manifest, directory) = match kept {
        Some(kept) => {
            let (bootstrap, manifest) = kept_bootstrap(&kept, &image, &location, &platform, progress).await?;
            (bootstrap, manifest, None)
        }
        None => {
            let directory = tempfile::tempdir().context("making a temporary directory")?;
            let manifest = fetch(&image, &location, &platform, directory.path(), progress).await?;
            (directory.path().join(BOOTSTRAP_FILE), Some(manifest), Some(directory))
        }
    };
    let blobs = given.unwrap_or_else(|| blobs_place(location, client, image));
    Ok(Located { name, bootstrap, blobs, manifest, _directory: directory })
}

/// The bootstrap where it is kept; with the manifest if it had to be fetched.
async fn kept_bootstrap(
    kept: &Kept,
    image: &Source,
    location: &Location,
    platform: &PlatformName,
    progress: &Progress,
) -> anyhow::Result<(PathBuf, Option<Manifest>)> {
    if let Some(found) = kept.find().await? {
        return Ok((found, None));
    }
    let directory = kept.begin()?;
    let manifest = fetch(image, location, platform, directory.path(), progress).await?;
    Ok((kept.keep(directory).await?, Some(manifest)))
}

/// Fetches the image's bootstrap to `directory`; returns its manifest.
async fn fetch(
    image: &Source,
    location: &Location,
    platform: &PlatformName,
    directory: &Path,
    progress: &Progress,
) -> anyhow::Result<Manifest> {
    let manifest = image.nydus_manifest(platform).await?;
    let layer = manifest.bootstrap().context("a nydus image without a bootstrap")?;
    let task = progress.task("fetch bootstrap", layer.size());
    fetch_bootstrap(image, layer, &directory.join(BOOTSTRAP_FILE), |bytes| task.advance(bytes))
        .await
        .with_context(|| format!("{location}: bootstrap layer {}", layer.digest()))?;
    Ok(manifest)
}

/// Where the blobs are of an image that is not merely files.
fn blobs_place(location: Location, client: Client, image: Source) -> BlobsPlace {
    match location {
        Location::Registry(reference) => BlobsPlace::Registry(Box::new((client, reference))),
        Location::Oci(layout) => BlobsPlace::Directory(layout.path.join("blobs/sha256")),
        Location::OciArchive(_) | Location::Package(_) => BlobsPlace::Archive(image),
        _ => BlobsPlace::Unknown,
    }
}
