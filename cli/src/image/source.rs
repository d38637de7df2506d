//! Where an image that a command works on comes from: a registry, an OCI layout, or files.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use image::location::Location;
use image::platform::{PlatformName, listed};
use image::source::Source;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};
use rafs::bootstrap::Bootstrap;
use rafs::source::tar::TarSource;
use rafs::source::{EntryKind, Source as _};
use registry::client::Client;
use registry::media_types::DOCKER_MANIFEST;
use registry::nydus;
use registry::reference::Reference;
use tempfile::TempDir;

use super::progress::{Progress, Task};
use crate::args;

/// A bootstrap on disk and the place that its blobs are in.
pub(super) struct Located {
    /// The image as the user named it, for messages.
    pub(super) name: String,
    /// The bootstrap's file.
    pub(super) bootstrap: PathBuf,
    /// Where the blobs are.
    pub(super) blobs: Blobs,
    /// The image's manifest, if it has one.
    pub(super) manifest: Option<ImageManifest>,
    /// Holds a bootstrap that was fetched.
    _directory: Option<TempDir>,
}

impl Located {
    /// Opens the bootstrap. Errors name the image, for the file may be a temporary one.
    pub(super) fn open(&self) -> anyhow::Result<Bootstrap> {
        Ok(Bootstrap::open_as(&self.bootstrap, &self.name)?)
    }
}

/// Where an image's blobs are.
pub(super) enum Blobs {
    /// In the repository of this reference.
    Registry(Box<(Client, Reference)>),
    /// In a directory, each under its hexadecimal digest.
    Directory(PathBuf),
    /// In an archive, read where they lie.
    Archive(Source),
    /// Not said.
    Unknown,
}

/// A bootstrap layer may unpack to this many bytes: some 200 bytes for each of 20 million files.
const BOOTSTRAP_LIMIT_BYTES: u64 = 4 << 30;

/// Where the bootstrap is among the files of an image, and where its blobs.
const BOOTSTRAP_FILE: &str = "image.boot";
const BLOBS_FOLDER: &str = "blobs";

/// Finds the image; one in a registry or a layout has its bootstrap fetched.
pub(super) async fn locate(
    source: &args::Source,
    client: &registry::client::ClientConfig,
    progress: &Progress,
) -> anyhow::Result<Located> {
    let (path, name) = (Path::new(&source.image), source.image.clone());
    let given = source.blobs.clone().map(Blobs::Directory);
    if path.is_file() {
        let blobs = given.unwrap_or(Blobs::Unknown);
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
        let blobs = given.unwrap_or_else(|| Blobs::Directory(folder.join(BLOBS_FOLDER)));
        let bootstrap = folder.join(BOOTSTRAP_FILE);
        return Ok(Located { name, bootstrap, blobs, manifest: None, _directory: None });
    }
    let client = Client::new(client.clone())?;
    let image = Source::open(&location, &client).await?;
    let manifest = nydus_manifest(&image, source.platform.as_deref()).await?;
    let layer = bootstrap_layer(&manifest).with_context(|| {
        format!("{location} is no nydus image: no layer has the annotation {}", nydus::ANNOTATION_BOOTSTRAP)
    })?;
    let directory = tempfile::tempdir().context("making a temporary directory")?;
    let bootstrap = directory.path().join(BOOTSTRAP_FILE);
    let task = progress.task("fetch bootstrap", layer.size());
    fetch_bootstrap(&image, layer, &bootstrap, &task)
        .await
        .with_context(|| format!("{location}: bootstrap layer {}", layer.digest()))?;
    // Small ones are there before anybody asks.
    drop(task);
    let blobs = match (given, location) {
        (Some(given), _) => given,
        (None, Location::Registry(reference)) => Blobs::Registry(Box::new((client, reference))),
        (None, Location::Oci(layout)) => Blobs::Directory(layout.path.join("blobs/sha256")),
        (None, Location::OciArchive(_) | Location::Package(_)) => Blobs::Archive(image),
        (None, _) => Blobs::Unknown,
    };
    Ok(Located { name, bootstrap, blobs, manifest: Some(manifest), _directory: Some(directory) })
}

/// The manifest of the nydus image that this leads to, by way of an index if it is one.
async fn nydus_manifest(image: &Source, platform: Option<&str>) -> anyhow::Result<ImageManifest> {
    let wanted = platform.map_or_else(|| Ok(PlatformName::host()), str::parse)?;
    let name = image.name();
    let root = image.root().await?;
    let media_type = root.descriptor.media_type();
    if !matches!(media_type, MediaType::ImageIndex | MediaType::Other(_)) || is_manifest(media_type) {
        return serde_json::from_slice(&root.content).with_context(|| format!("{name}: manifest"));
    }
    let index: ImageIndex =
        serde_json::from_slice(&root.content).with_context(|| format!("{name}: index"))?;
    let named = |entry: &Descriptor| entry.platform().as_ref().map(PlatformName::of);
    // Entries that name no platform may be for any, and come last.
    let mut candidates: Vec<(usize, &Descriptor)> = index
        .manifests()
        .iter()
        .filter_map(|entry| {
            Some((named(entry).map_or(Some(usize::MAX), |named| wanted.rank(&named))?, entry))
        })
        .collect();
    candidates.sort_by_key(|(rank, _)| *rank);
    for (_, entry) in candidates {
        let document = image.manifest(entry).await?;
        let manifest: ImageManifest = serde_json::from_slice(&document.content)
            .with_context(|| format!("{name}: manifest {}", entry.digest()))?;
        if bootstrap_layer(&manifest).is_some() {
            return Ok(manifest);
        }
    }
    let there: Vec<PlatformName> = index.manifests().iter().filter_map(named).collect();
    bail!("{name}: the index names no nydus image for {wanted}, but images for {}", listed(&there))
}

fn is_manifest(media_type: &MediaType) -> bool {
    media_type.to_string() == DOCKER_MANIFEST
}

/// The layer with the bootstrap.
pub(super) fn bootstrap_layer(manifest: &ImageManifest) -> Option<&Descriptor> {
    manifest.layers().iter().find(|layer| is_marked(layer, nydus::ANNOTATION_BOOTSTRAP))
}

/// What a layer of a nydus image is, where it says so.
pub(super) fn role(layer: &Descriptor) -> Option<&'static str> {
    let roles = [(nydus::ANNOTATION_BOOTSTRAP, "bootstrap"), (nydus::ANNOTATION_BLOB, "blob")];
    roles.into_iter().find_map(|(annotation, role)| is_marked(layer, annotation).then_some(role))
}

fn is_marked(layer: &Descriptor, annotation: &str) -> bool {
    let annotations = layer.annotations().as_ref();
    annotations.and_then(|all| all.get(annotation)).is_some_and(|value| value == nydus::TRUE)
}

/// Copies the content of the entry that the archive is at.
fn copy_content(archive: &mut impl rafs::source::Source, file: &mut impl Write) -> anyhow::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match archive.read(&mut buffer)? {
            0 => return Ok(()),
            length => file.write_all(&buffer[..length])?,
        }
    }
}

/// Fetches the bootstrap layer and unpacks `image/image.boot` to `target`.
async fn fetch_bootstrap(
    image: &Source,
    layer: &Descriptor,
    target: &Path,
    task: &Task,
) -> anyhow::Result<()> {
    let mut packed = tempfile::tempfile()?;
    let mut reader = image.blob(layer).await?;
    while let Some(bytes) = reader.next().await? {
        task.advance(bytes.len() as u64);
        packed.write_all(&bytes)?;
    }
    std::io::Seek::rewind(&mut packed)?;
    let target = target.to_owned();
    tokio::task::spawn_blocking(move || {
        // The reader that builds use: names and headers of a stranger's archive are bounded there.
        let mut archive = TarSource::new(packed);
        while let Some(entry) = archive.next_entry()? {
            let EntryKind::Regular { size } = entry.kind else { continue };
            if entry.path == b"image/image.boot" {
                anyhow::ensure!(
                    size < BOOTSTRAP_LIMIT_BYTES,
                    "image/image.boot is over {BOOTSTRAP_LIMIT_BYTES} bytes"
                );
                return copy_content(&mut archive, &mut std::fs::File::create_new(&target)?);
            }
        }
        bail!("the layer has no image/image.boot")
    })
    .await?
}
