//! Where an image that a command works on comes from: a registry, or files.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, MediaType, Os};
use rafs::source::tar::TarSource;
use rafs::source::{EntryKind, Source};
use registry::client::Client;
use registry::nydus;
use registry::reference::Reference;
use tempfile::TempDir;

use crate::args;

/// A bootstrap on disk and the place that its blobs are in.
pub(super) struct Located {
    /// The bootstrap's file.
    pub(super) bootstrap: PathBuf,
    /// Where the blobs are.
    pub(super) blobs: Blobs,
    /// What the registry says of the image, if it comes from one.
    pub(super) manifest: Option<ImageManifest>,
    /// Holds a bootstrap that was fetched.
    _directory: Option<TempDir>,
}

/// Where an image's blobs are.
pub(super) enum Blobs {
    /// In the repository of this reference.
    Registry(Box<(Client, Reference)>),
    /// In a directory, each under its hexadecimal digest.
    Directory(PathBuf),
    /// Not said.
    Unknown,
}

/// A bootstrap layer may unpack to this many bytes: some 200 bytes for each of 20 million files.
const BOOTSTRAP_LIMIT_BYTES: u64 = 4 << 30;

/// Finds the image; one in a registry has its bootstrap fetched.
pub(super) async fn locate(
    source: &args::Source,
    client: &registry::client::ClientConfig,
) -> anyhow::Result<Located> {
    let path = Path::new(&source.image);
    if path.is_file() {
        let blobs = source.blobs.clone().map_or(Blobs::Unknown, Blobs::Directory);
        return Ok(Located { bootstrap: path.to_owned(), blobs, manifest: None, _directory: None });
    }
    if path.is_absolute() || source.image.starts_with("./") || source.image.starts_with("../") {
        bail!(
            "{}: no such file; expected a bootstrap, or a reference such as registry.example/app:v1",
            source.image
        );
    }
    let reference = Reference::parse(&source.image)?;
    let client = Client::new(client.clone())?;
    let manifest = nydus_manifest(&client, &reference, source.platform.as_deref()).await?;
    let layer = bootstrap_layer(&manifest).with_context(|| {
        format!("{reference} is no nydus image: no layer has the annotation {}", nydus::ANNOTATION_BOOTSTRAP)
    })?;
    let directory = tempfile::tempdir().context("making a temporary directory")?;
    let bootstrap = directory.path().join("image.boot");
    fetch_bootstrap(&client, &reference, layer, &bootstrap)
        .await
        .with_context(|| format!("{reference}: bootstrap layer {}", layer.digest()))?;
    let blobs = match &source.blobs {
        Some(directory) => Blobs::Directory(directory.clone()),
        None => Blobs::Registry(Box::new((client, reference))),
    };
    Ok(Located { bootstrap, blobs, manifest: Some(manifest), _directory: Some(directory) })
}

/// The manifest of the nydus image that `reference` leads to, by way of an index if it is one.
async fn nydus_manifest(
    client: &Client,
    reference: &Reference,
    platform: Option<&str>,
) -> anyhow::Result<ImageManifest> {
    let (descriptor, bytes) = client.manifest(reference).await?;
    if !matches!(descriptor.media_type(), MediaType::ImageIndex | MediaType::Other(_))
        || is_manifest(descriptor.media_type())
    {
        return serde_json::from_slice(&bytes).with_context(|| format!("{reference}: manifest"));
    }
    let index: ImageIndex = serde_json::from_slice(&bytes).with_context(|| format!("{reference}: index"))?;
    let wanted = platform.map_or_else(|| Ok((Os::default(), Arch::default())), parse_platform)?;
    let candidates = index.manifests().iter().filter(|entry| {
        entry.platform().as_ref().is_none_or(|p| (p.os(), p.architecture()) == (&wanted.0, &wanted.1))
    });
    for entry in candidates {
        let entry_reference = reference.at_digest(entry.digest().clone());
        let (_, bytes) = client.manifest(&entry_reference).await?;
        let manifest: ImageManifest =
            serde_json::from_slice(&bytes).with_context(|| format!("{entry_reference}: manifest"))?;
        if bootstrap_layer(&manifest).is_some() {
            return Ok(manifest);
        }
    }
    bail!("{reference}: the index names no nydus image for {}/{}", wanted.0, wanted.1)
}

fn is_manifest(media_type: &MediaType) -> bool {
    media_type.to_string() == "application/vnd.docker.distribution.manifest.v2+json"
}

fn parse_platform(text: &str) -> anyhow::Result<(Os, Arch)> {
    let (os, arch) = text.split_once('/').with_context(|| format!("platform {text:?}: expected OS/ARCH"))?;
    Ok((Os::from(os), Arch::from(arch)))
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
fn copy_content(archive: &mut impl Source, file: &mut impl Write) -> anyhow::Result<()> {
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
    client: &Client,
    reference: &Reference,
    layer: &Descriptor,
    target: &Path,
) -> anyhow::Result<()> {
    let mut packed = tempfile::tempfile()?;
    let mut reader = client.blob(reference.repository(), layer.digest())?;
    while let Some(bytes) = reader.next().await? {
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
