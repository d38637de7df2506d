//! Some files of an image, plain or nydus, in memory and from there in a directory: those that say what it is and what it needs.
//!
//! A nydus image is read where the files are; of a plain one every layer has to come by. Links are written as they are, so that
//! whoever reads the directory decides where they may lead.

mod collected;
mod large;
mod layers;
mod nydus;

pub use self::large::LargeFiles;
pub use self::nydus::fetch_bootstrap;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rafs::blob::Blob;
use rafs::blob::source::BlobError;
use rafs::bootstrap::ReadError;
use registry::client::{Client, Descriptor};
use serde::Deserialize;
use thiserror::Error;

use crate::destination::StoreError;
use crate::document::{DocumentError, ImageConfig, Manifest, Parsed};
use crate::location::Location;
use crate::platform::PlatformName;
use crate::source::{Document, Source, SourceError};

/// Which files are wanted, by their paths from the root without a slash before.
pub type Wanted = fn(&[u8]) -> bool;

/// Why the files of an image cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FilesError {
    /// The image cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A layer is no tar.
    #[error("layer {layer}: {error}")]
    Layer {
        /// The layer's digest.
        layer: String,
        /// What is wrong.
        error: rafs::source::SourceError,
    },
    /// The bootstrap is broken.
    #[error("the image's bootstrap: {0}")]
    Bootstrap(#[from] ReadError),
    /// There is no bootstrap in the layer that should hold it.
    #[error("layer {0} holds no image/image.boot, which a bootstrap is")]
    NoBootstrap(String),
    /// The bootstrap is larger than any.
    #[error("image/image.boot in layer {layer} has {size} bytes: at most {limit} are read")]
    LargeBootstrap {
        /// The layer's digest.
        layer: String,
        /// Its size in bytes.
        size: u64,
        /// The most that is read, in bytes.
        limit: u64,
    },
    /// It is not of the kind that is wanted.
    #[error("{0} is no nydus image: none of its layers is a bootstrap")]
    NotNydus(String),
    /// A blob cannot be read.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The image's config is none.
    #[error("{image}: {error}")]
    Config {
        /// The image.
        image: String,
        /// What is wrong with it.
        error: DocumentError,
    },
    /// There is no image for the platform.
    #[error("{image} has no image for {platform}")]
    NoPlatform {
        /// The image.
        image: String,
        /// The platform.
        platform: String,
    },
    /// The files are more than such files are.
    #[error("the image has more than {limit} {what} that are wanted")]
    TooMuch {
        /// What there is so much of.
        what: &'static str,
        /// The most that is kept.
        limit: u64,
    },
    /// There is no room for large ones.
    #[error(transparent)]
    Room(#[from] StoreError),
    /// The directory cannot be written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The thread that reads is gone.
    #[error("reading ended unexpectedly: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// What the config of an image says of the image, and its manifest.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Configured {
    /// Its environment, `NAME=VALUE` each.
    pub env: Option<Vec<String>>,
    /// Its labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// What is run.
    pub entrypoint: Option<Vec<String>>,
    /// What is run, or given to the entry point.
    pub cmd: Option<Vec<String>>,
    /// The annotations of its manifest.
    #[serde(skip)]
    pub annotations: BTreeMap<String, String>,
    /// Whether it is a nydus image.
    #[serde(skip)]
    pub nydus: bool,
}

/// Writes the wanted files of the image at `location` for `platform` to the empty directory `to`; returns what its config says.
///
/// # Errors
///
/// When the image cannot be read, or the files are more than 256 MiB.
pub async fn extract(
    location: &Location,
    client: &Client,
    platform: &PlatformName,
    wanted: Wanted,
    to: &Path,
) -> Result<Configured, FilesError> {
    let source = &Source::open(location, client).await?;
    let manifest = manifest(source, platform).await?;
    let config = source.document(&manifest.config).await?;
    let collected = match manifest.bootstrap() {
        Some(layer) => nydus::collect(source, layer, wanted).await?,
        None => layers::collect(source, &manifest.layers, wanted).await?,
    };
    let to = to.to_owned();
    tokio::task::spawn_blocking(move || collected.write(&to)).await??;
    let settings = ImageConfig::parse(&config).and_then(|config| config.settings::<Configured>());
    let settings = settings.map_err(|error| FilesError::Config { image: source.name(), error })?;
    let (annotations, nydus) = (manifest.annotations(), manifest.bootstrap().is_some());
    Ok(Configured { annotations, nydus, ..settings.unwrap_or_default() })
}

/// The whole tree of the nydus image whose bootstrap is in `layer`, with all that is known of its blobs.
pub(crate) async fn bootstrap_image(
    source: &Source,
    layer: &Descriptor,
) -> Result<rafs::tree::Image, FilesError> {
    nydus::image(source, layer).await
}

/// The blobs of the nydus image at `location` for `platform`, with all of their chunks. `None` if there is none, or it is no nydus image.
///
/// # Errors
///
/// When it cannot be read.
pub async fn nydus_blobs(
    location: &Location,
    client: &Client,
    platform: &PlatformName,
) -> Result<Option<Vec<Blob>>, FilesError> {
    match nydus_image(location, client, platform).await {
        Ok((_, image)) => Ok(Some(image.blobs)),
        Err(FilesError::NotNydus(_) | FilesError::NoPlatform { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The nydus image at `location` for `platform`, opened, with its tree and all chunks of its blobs.
///
/// # Errors
///
/// When it cannot be read, or is no nydus image.
pub(crate) async fn nydus_image(
    location: &Location,
    client: &Client,
    platform: &PlatformName,
) -> Result<(Source, rafs::tree::Image), FilesError> {
    let source = Source::open(location, client).await?;
    let manifest = manifest(&source, platform).await?;
    let layer = manifest.bootstrap().ok_or_else(|| FilesError::NotNydus(source.name()))?;
    let image = bootstrap_image(&source, layer).await?;
    Ok((source, image))
}

/// The manifest of the nydus image for `platform`, or that of the plain one where there is none.
async fn manifest(source: &Source, platform: &PlatformName) -> Result<Manifest, FilesError> {
    let root = source.root().await?;
    if let Parsed::Index(index) = source.parse(&root)? {
        for (entry, is_nydus) in index.marked() {
            let found = entry.platform().as_ref().map(PlatformName::of);
            if is_nydus
                && found.is_some_and(|found| platform.matches(&found))
                && let Parsed::Manifest(manifest) = source.parse(&source.manifest(entry).await?)?
            {
                return Ok(manifest);
            }
        }
    }
    let images = source.images_in(root, std::slice::from_ref(platform)).await?;
    let best = images.iter().min_by_key(|image| platform.rank(&image.platform).unwrap_or(usize::MAX));
    let missing = || FilesError::NoPlatform { image: source.name(), platform: platform.to_string() };
    let image = best.ok_or_else(missing)?;
    let document = Document { descriptor: image.descriptor.clone(), content: image.manifest.clone() };
    match source.parse(&document)? {
        Parsed::Manifest(manifest) => Ok(manifest),
        _ => Err(missing()),
    }
}
