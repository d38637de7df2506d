//! An OCI image layout: `index.json` names images, everything is at `blobs/ALGORITHM/HEX`.

use std::sync::Arc;

use registry::client::Descriptor;

use super::archive::Archive;
use super::blob::BlobStream;
use super::docker::is_same;
use super::error::SourceError;
use super::files::{Files, Part};
use crate::document;
use crate::platform::PlatformName;
use registry::digest::Digest;

/// The annotation that names an image in `index.json`.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation by which containerd adds the full name when it exports.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The document that names the images.
pub const INDEX: &str = "index.json";

/// An OCI image layout. Everything here blocks on the disk.
#[derive(Debug)]
pub(super) struct OciLayout {
    /// As people named it.
    name: String,
    files: Files,
    /// The image that was chosen.
    pub(super) root: Descriptor,
}

impl OciLayout {
    /// Opens the layout and finds the image that `wanted` chooses: by name, by `@DIGEST`, or the only one.
    pub(super) fn open(name: String, files: Files, wanted: Option<&str>) -> Result<Self, SourceError> {
        let content = match files.document(INDEX) {
            Err(SourceError::Missing { place }) => {
                return Err(SourceError::document(
                    name,
                    format!("no OCI image layout: {place} does not exist"),
                ));
            }
            content => content?,
        };
        let index = document::Index::parse(&content)
            .map_err(|error| SourceError::document(format!("{INDEX} of {name}"), error))?;
        let root = choose(&name, &index.manifests, wanted)?.clone();
        Ok(Self { name, files, root })
    }

    /// The layout that an archive as of `docker save` is as well, if the image in it is there for several platforms: the archive's own
    /// document names one alone.
    pub(super) fn of_several_platforms(
        name: &str,
        archive: &Arc<Archive>,
        wanted: Option<&str>,
    ) -> Option<Self> {
        let layout = Self::open(name.to_owned(), Files::Archive(Arc::clone(archive)), wanted).ok()?;
        let index = document::Index::parse(&layout.document(&layout.root).ok()?).ok()?;
        let is_there = |entry: &&Descriptor| {
            let platform = entry.platform().as_ref().map(PlatformName::of);
            platform.is_some_and(|platform| !platform.is_unknown()) && archive.has(&blob_path(entry.digest()))
        };
        (index.manifests.iter().filter(is_there).count() > 1).then_some(layout)
    }

    pub(super) fn part(&self, digest: &Digest) -> Result<Part, SourceError> {
        self.files.part(&blob_path(digest))
    }

    /// The document that `descriptor` names, verified.
    pub(super) fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        self.part(descriptor.digest())?.verified(descriptor)
    }

    /// The blob that `descriptor` names.
    pub(super) fn blob(&self, descriptor: &Descriptor) -> Result<BlobStream, SourceError> {
        BlobStream::part(self.part(descriptor.digest())?, descriptor)
    }

    /// As people named it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// Where a layout has a blob. A digest's parts have no slash and are not `..`, so this stays in the layout.
pub fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.digest())
}

fn choose<'a>(
    name: &str,
    images: &'a [Descriptor],
    wanted: Option<&str>,
) -> Result<&'a Descriptor, SourceError> {
    let fits = |image: &&Descriptor| match wanted {
        None => true,
        Some(wanted) => match wanted.strip_prefix('@') {
            Some(digest) => image.digest().as_ref() == digest,
            None => names(image).any(|name| name == wanted),
        },
    };
    let mut found: Vec<&Descriptor> = images.iter().filter(fits).collect();
    if let (true, Some(wanted)) = (found.is_empty(), wanted) {
        // Written otherwise: `busybox` is `docker.io/library/busybox:latest`.
        found = images.iter().filter(|image| names(image).any(|name| is_same(name, wanted))).collect();
    }
    match (&found[..], wanted) {
        ([image], _) => Ok(image),
        ([], Some(wanted)) => Err(SourceError::NoSuchImage {
            source_name: name.to_owned(),
            wanted: wanted.to_owned(),
            images: list(images.iter()),
        }),
        ([], None) => Err(SourceError::document(name, "the layout's index.json names no image")),
        _ => Err(SourceError::SeveralImages {
            source_name: name.to_owned(),
            count: found.len(),
            images: list(found.into_iter()),
        }),
    }
}

fn names(image: &Descriptor) -> impl Iterator<Item = &str> {
    let annotations = image.annotations().as_ref();
    [REF_NAME, CONTAINERD_NAME]
        .into_iter()
        .filter_map(move |key| annotations.and_then(|annotations| annotations.get(key)))
        .map(String::as_str)
}

/// How each image is chosen.
fn list<'a>(images: impl Iterator<Item = &'a Descriptor>) -> String {
    /// More than a person reads.
    const SHOWN: usize = 50;
    let choice = |image: &Descriptor| match names(image).next() {
        Some(name) => format!("{name} (@{})", image.digest()),
        None => format!("@{}", image.digest()),
    };
    let choices: Vec<String> = images.take(SHOWN).map(choice).collect();
    if choices.is_empty() { "none".to_owned() } else { choices.join(", ") }
}
