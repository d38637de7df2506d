//! From requests to what they are: every image is looked up, several at once, each within a deadline.

use std::path::Path;
use std::time::Duration;

use ::ignore::gitignore::{Gitignore, GitignoreBuilder};
use futures::StreamExt as _;
use image::document::{Index, Parsed};
use image::location::{InFile, Location};
use image::platform::{PlatformName, listed};
use image::source::{Document, Source, SourceError, SourceImage};
use registry::client::{Client, Descriptor};
use thiserror::Error;

use super::{Archive, Lock, Locked, PlatformImage};
use crate::discover::{ArchiveKind, AskedImage, Discovery, Problem};

/// How images are looked up.
#[derive(Clone, Debug)]
pub struct ResolveOptions {
    /// The platforms to lock; empty: all that each image has.
    pub platforms: Vec<PlatformName>,
    /// How many images are looked up at once. Default: 16.
    pub concurrency: usize,
    /// How long an image may take. Default: 5 minutes.
    pub deadline: Duration,
    /// Images that may be missing although they are asked for outright, in the syntax of `.gitignore`.
    pub allow_missing: Vec<String>,
}

impl Default for ResolveOptions {
    fn default() -> Self {
        Self {
            platforms: Vec::new(),
            concurrency: 16,
            deadline: Duration::from_secs(300),
            allow_missing: Vec::new(),
        }
    }
}

/// Why an image is not known.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// It cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It took too long.
    #[error("{image}: not looked up within {} s", after.as_secs())]
    Deadline {
        /// Its name.
        image: String,
        /// The deadline.
        after: Duration,
    },
    /// A pattern of images that may be missing is none.
    #[error("images that may be missing: {0}")]
    Pattern(String),
}

/// What became of the requests.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// All images that there are.
    pub lock: Lock,
    /// Images that are asked for outright and are not there.
    pub problems: Vec<Problem>,
    /// Candidates that are none, and images that may be missing and are.
    pub warnings: Vec<Problem>,
}

/// Looks up what `discovery`, made of the tree `root`, asks for. What `obeyed` has is taken from there and not looked up.
///
/// # Errors
///
/// When an option cannot be followed. Images that cannot be looked up are among the problems.
pub async fn resolve(
    discovery: &Discovery,
    root: &Path,
    client: &Client,
    options: &ResolveOptions,
    obeyed: Option<&Lock>,
) -> Result<Resolved, ResolveError> {
    let missing = may_be_missing(&options.allow_missing)?;
    // A lock for other platforms says nothing of these.
    let obeyed = obeyed.filter(|lock| lock.platforms == options.platforms);
    let look_up = |(number, image): (usize, AskedImage)| async move {
        let locked = obeyed.and_then(|lock| lock.get(&image.reference));
        let locked = locked.filter(|locked| locked.archive == image.archive);
        let found = match locked {
            Some(locked) => Ok(Locked { asked_by: asked_by(&image), ..locked.clone() }),
            None => look_up(&image, root, client, options).await,
        };
        (number, image, found)
    };
    // One that is not answered keeps no others waiting, and whichever is answered first, they stay in their order.
    let images = futures::stream::iter(discovery.images.clone().into_iter().enumerate()).map(look_up);
    let mut found: Vec<_> = images.buffer_unordered(options.concurrency.max(1)).collect().await;
    found.sort_by_key(|(number, ..)| *number);
    let lock = Lock { platforms: options.platforms.clone(), images: Vec::new() };
    let mut resolved = Resolved { lock, problems: Vec::new(), warnings: Vec::new() };
    for (_, image, found) in found {
        match found {
            Ok(locked) => resolved.lock.images.push(locked),
            Err(error) => {
                let allowed = missing.matched(image.reference.to_string(), false).is_ignore();
                let list =
                    if image.certain && !allowed { &mut resolved.problems } else { &mut resolved.warnings };
                list.push(problem(&image, &error));
            }
        }
    }
    Ok(resolved)
}

/// The image as it can be read: from its registry, or from its archive in the tree `root`.
pub fn source(locked: &Locked, root: &Path) -> Location {
    location(&locked.reference, locked.archive.as_ref(), root)
}

/// The image as it was locked: from its registry by digest, or from its archive in the tree `root`, which knows it by name.
pub fn locked_source(locked: &Locked, root: &Path) -> Location {
    match locked.archive {
        None => Location::Registry(locked.reference.at_digest(locked.digest.clone())),
        Some(_) => source(locked, root),
    }
}

/// Opens an image of a lock. Where an archive holds one image alone it is this one, whatever the archive calls it: the list that asks for
/// it says what it is called.
///
/// # Errors
///
/// When it is not there, or cannot be read.
pub async fn open(location: &Location, client: &Client) -> Result<Source, SourceError> {
    let only = |place: &InFile| InFile { image: None, ..place.clone() };
    let only = match location {
        Location::DockerArchive(place) => Some(Location::DockerArchive(only(place))),
        Location::OciArchive(place) => Some(Location::OciArchive(only(place))),
        _ => None,
    };
    match (Source::open(location, client).await, only) {
        (Err(error @ SourceError::NoSuchImage { .. }), Some(only)) => {
            Source::open(&only, client).await.map_err(|_| error)
        }
        (opened, _) => opened,
    }
}

fn location(reference: &registry::Reference, archive: Option<&Archive>, root: &Path) -> Location {
    let Some(archive) = archive else { return Location::Registry(reference.clone()) };
    let place = InFile { path: root.join(&archive.path), image: Some(reference.to_string()) };
    match archive.kind {
        ArchiveKind::DockerArchive => Location::DockerArchive(place),
        ArchiveKind::OciArchive => Location::OciArchive(place),
    }
}

fn may_be_missing(patterns: &[String]) -> Result<Gitignore, ResolveError> {
    let mut builder = GitignoreBuilder::new("");
    let wrong = |error: ::ignore::Error| ResolveError::Pattern(error.to_string());
    for pattern in patterns {
        builder.add_line(None, pattern).map_err(wrong)?;
    }
    builder.build().map_err(wrong)
}

/// At the first place that asks for the image outright, or has its shape.
fn problem(image: &AskedImage, error: &ResolveError) -> Problem {
    let first = image.origins.iter().find(|origin| origin.way != crate::discover::Way::Shape);
    let place = first.or(image.origins.first());
    let file = place.map(|place| place.file.clone()).unwrap_or_default();
    let more = match image.origins.len() {
        0 | 1 => String::new(),
        count => format!(" (asked for at {} places more)", count - 1),
    };
    Problem {
        file,
        line: place.map(|place| place.line),
        reason: format!("{}: {error}{more}", image.reference),
    }
}

fn asked_by(image: &AskedImage) -> Vec<String> {
    let mut files: Vec<String> = image.origins.iter().map(|origin| origin.file.clone()).collect();
    files.sort();
    files.dedup();
    files
}

async fn look_up(
    image: &AskedImage,
    root: &Path,
    client: &Client,
    options: &ResolveOptions,
) -> Result<Locked, ResolveError> {
    let after = options.deadline;
    let found = tokio::time::timeout(after, found(image, root, client, &options.platforms)).await;
    found.map_err(|_| ResolveError::Deadline { image: image.reference.to_string(), after })?
}

async fn found(
    image: &AskedImage,
    root: &Path,
    client: &Client,
    wanted: &[PlatformName],
) -> Result<Locked, ResolveError> {
    let source = open(&location(&image.reference, image.archive.as_ref(), root), client).await?;
    let document = source.root().await?;
    let nydus = nydus_images(&source, &document, wanted).await?;
    let images = plain_images(&source, &document, wanted, &nydus).await?;
    let descriptor = document.descriptor;
    let mut platforms: Vec<PlatformImage> = images.iter().map(platform_image).collect();
    sort(&mut platforms);
    Ok(Locked {
        reference: image.reference.clone(),
        digest: descriptor.digest().clone(),
        media_type: descriptor.media_type().to_string(),
        size: descriptor.size(),
        platforms,
        nydus,
        archive: image.archive.clone(),
        asked_by: asked_by(image),
    })
}

/// The images for `wanted` that are no nydus images next to others: for each platform for which there is none in `nydus` there has to be one.
async fn plain_images(
    source: &Source,
    document: &Document,
    wanted: &[PlatformName],
    nydus: &[PlatformImage],
) -> Result<Vec<SourceImage>, ResolveError> {
    match source.images_in(document.clone(), wanted).await {
        // What is no image to be run, such as manifests for Flux, has no platform.
        Err(SourceError::NotAnImage { .. }) => return Ok(Vec::new()),
        Err(SourceError::NoSuchPlatform { .. }) => {}
        images => return Ok(images?),
    }
    let plain = source.images_in(document.clone(), &[]).await?;
    let as_nydus: Vec<PlatformName> = match source.parse(document)? {
        Parsed::Index(index) => nydus_platforms(&index).map(|(_, platform)| platform).collect(),
        _ => Vec::new(),
    };
    if plain.is_empty() && as_nydus.is_empty() {
        return Ok(Vec::new());
    }
    let is_nydus_alone = |platform: &&PlatformName| {
        nydus.iter().any(|image| platform.matches(&image.platform))
            && !plain.iter().any(|image| platform.matches(&image.platform))
    };
    let left: Vec<PlatformName> =
        wanted.iter().filter(|platform| !is_nydus_alone(platform)).cloned().collect();
    if left.is_empty() {
        return Ok(Vec::new());
    }
    match source.images_in(document.clone(), &left).await {
        Err(SourceError::NoSuchPlatform { source_name, wanted, .. }) => {
            let found = listed(plain.iter().map(|image| &image.platform).chain(&as_nydus));
            Err(SourceError::NoSuchPlatform { source_name, wanted, found }.into())
        }
        images => Ok(images?),
    }
}

/// The nydus images that stand in the index `document` next to plain ones.
async fn nydus_images(
    source: &Source,
    document: &Document,
    wanted: &[PlatformName],
) -> Result<Vec<PlatformImage>, ResolveError> {
    let Parsed::Index(index) = source.parse(document)? else { return Ok(Vec::new()) };
    let mut images = Vec::new();
    for (entry, platform) in nydus_platforms(&index) {
        if !(wanted.is_empty() || wanted.iter().any(|wanted| wanted.matches(&platform))) {
            continue;
        }
        let Parsed::Manifest(manifest) = source.parse(&source.manifest(entry).await?)? else { continue };
        let bytes = total(&manifest.config, &manifest.layers);
        images.push(PlatformImage { platform, digest: entry.digest().clone(), size: entry.size(), bytes });
    }
    sort(&mut images);
    Ok(images)
}

/// The entries of nydus images that say so, and what they are for.
fn nydus_platforms(index: &Index) -> impl Iterator<Item = (&Descriptor, PlatformName)> {
    let marked = index.marked().filter(|(_, is_nydus)| *is_nydus);
    marked.filter_map(|(entry, _)| Some((entry, entry.platform().as_ref().map(PlatformName::of)?)))
}

fn platform_image(image: &SourceImage) -> PlatformImage {
    PlatformImage {
        platform: image.platform.clone(),
        digest: image.descriptor.digest().clone(),
        size: image.descriptor.size(),
        bytes: total(&image.config, &image.layers),
    }
}

/// Sizes are what a manifest claims: their sum is kept within bounds.
fn total(config: &Descriptor, layers: &[Descriptor]) -> u64 {
    layers.iter().fold(config.size(), |sum, layer| sum.saturating_add(layer.size()))
}

fn sort(images: &mut [PlatformImage]) {
    images.sort_by_key(|image| (image.platform.to_string(), image.digest.to_string()));
}
