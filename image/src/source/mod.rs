//! An image to be read, wherever it is: its documents whole, its layers as streams, all verified against their digests.
//!
//! ```text
//! Location ──Source::open──> Source ──images──> one SourceImage a platform: manifest, config, layers
//!                                   ──blob────> BlobStream: a layer's bytes
//! ```
//!
//! - `archive`: a tar, scanned once and read where its files lie.
//! - `files`: a layout's files, in a directory or such a tar.
//! - `oci`, `docker`, `stored`: what these files mean.
//! - `blob`: a blob as it is read.
//! - `images`: the images of an index.
//! - `nydus`: the nydus image among them.
//! - `ranges`: the blobs of a nydus image.

mod archive;
mod blob;
mod docker;
mod error;
mod files;
mod images;
mod nydus;
mod oci;
mod ranges;
mod stored;

use std::sync::Arc;

use bytes::Bytes;
use registry::client::Descriptor;

pub use self::blob::BlobStream;
pub use self::error::SourceError;
pub use self::files::Part as BlobFile;
pub use self::images::SourceImage;
pub use self::oci::{INDEX as OCI_INDEX_FILE, REF_NAME, blob_path};
pub use self::stored::{PACKAGE_FILE, StoredImages};

pub(crate) use self::ranges::{RegistryBlobs, blob_digest};

use self::archive::Archive;
use self::docker::DockerArchive;
use self::files::Files;
use self::oci::OciLayout;
use self::stored::StoredImage;
use crate::location::Location;
use registry::client::{Client, MANIFEST_LIMIT_BYTES};
use registry::reference::{Reference, Repository};

/// A manifest or index as it was read, and its descriptor. The bytes have the descriptor's digest.
#[derive(Clone, Debug)]
pub struct Document {
    /// Media type, digest, size, and what else whoever named it says.
    pub descriptor: Descriptor,
    /// The document.
    pub content: Bytes,
}

/// An image to be read. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Source {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Registry { client: Client, reference: Reference },
    Oci(Arc<OciLayout>),
    Docker(Arc<DockerArchive>),
    Stored(Arc<StoredImage>),
}

impl Source {
    /// Opens the image at `location`; `client` is for registries, and its spool folder for archives that are compressed.
    ///
    /// # Errors
    ///
    /// When there is none, or the location is not one of images with manifest and layers (`directory:`, `files:`).
    pub async fn open(location: &Location, client: &Client) -> Result<Self, SourceError> {
        if let Location::Registry(reference) = location {
            let (client, reference) = (client.clone(), reference.clone());
            return Ok(Self { kind: Kind::Registry { client, reference } });
        }
        let (location, spool) = (location.clone(), client.config().upload.spool_dir.clone());
        let kind = tokio::task::spawn_blocking(move || Kind::open(&location, &spool)).await??;
        Ok(Self { kind })
    }

    /// The image's name, for messages.
    pub fn name(&self) -> String {
        match &self.kind {
            Kind::Registry { reference, .. } => reference.to_string(),
            Kind::Oci(layout) => layout.name().to_owned(),
            Kind::Docker(archive) => archive.name().to_owned(),
            Kind::Stored(image) => image.name().to_owned(),
        }
    }

    /// The image's reference and the client to reach it with, if it is in a registry.
    pub fn registry(&self) -> Option<(&Client, &Reference)> {
        match &self.kind {
            Kind::Registry { client, reference } => Some((client, reference)),
            Kind::Oci(_) | Kind::Docker(_) | Kind::Stored(_) => None,
        }
    }

    /// The repository that its blobs are in, if it is in a registry.
    pub fn repository(&self) -> Option<&Repository> {
        self.registry().map(|(_, reference)| reference.repository())
    }

    /// What the image's name leads to: a manifest or an index.
    pub async fn root(&self) -> Result<Document, SourceError> {
        match &self.kind {
            Kind::Registry { client, reference } => {
                let (descriptor, content) = client.manifest(reference).await?;
                Ok(Document { descriptor, content })
            }
            Kind::Oci(layout) => self.manifest(&layout.root).await,
            Kind::Docker(archive) => Ok(archive.root.clone()),
            Kind::Stored(image) => {
                let image = Arc::clone(image);
                tokio::task::spawn_blocking(move || image.root()).await?
            }
        }
    }

    /// A manifest or index that another one names.
    pub async fn manifest(&self, descriptor: &Descriptor) -> Result<Document, SourceError> {
        let content = match &self.kind {
            Kind::Registry { client, reference } => {
                let reference = reference.at_digest(descriptor.digest().clone());
                client.manifest(&reference).await?.1
            }
            Kind::Oci(_) | Kind::Docker(_) => self.document(descriptor).await?,
            Kind::Stored(image) => {
                let (image, wanted) = (Arc::clone(image), descriptor.clone());
                tokio::task::spawn_blocking(move || image.manifest(&wanted)).await??.into()
            }
        };
        Ok(Document { descriptor: descriptor.clone(), content })
    }

    /// The same; `None` where an archive, a layout or a package holds other platforms of the image alone.
    ///
    /// # Errors
    ///
    /// When it cannot be read; in a registry also when it is not there.
    pub async fn manifest_if_there(&self, descriptor: &Descriptor) -> Result<Option<Document>, SourceError> {
        match self.manifest(descriptor).await {
            Err(SourceError::Missing { .. }) if self.registry().is_none() => Ok(None),
            found => found.map(Some),
        }
    }

    /// A blob that is a small document, in memory: an image's config.
    ///
    /// # Errors
    ///
    /// When it is larger than any manifest is (16 MiB).
    pub async fn document(&self, descriptor: &Descriptor) -> Result<Bytes, SourceError> {
        let wanted = descriptor.clone();
        match &self.kind {
            Kind::Registry { .. } => {
                let (size, limit) = (descriptor.size(), MANIFEST_LIMIT_BYTES as u64);
                if size > limit {
                    let place = format!("blob {} of {}", descriptor.digest(), self.name());
                    return Err(SourceError::TooLarge { place, size, limit });
                }
                let mut content = Vec::new();
                let mut blob = self.blob(descriptor).await?;
                while let Some(bytes) = blob.next().await? {
                    content.extend_from_slice(&bytes);
                }
                Ok(content.into())
            }
            Kind::Oci(layout) => {
                let layout = Arc::clone(layout);
                Ok(tokio::task::spawn_blocking(move || layout.document(&wanted)).await??.into())
            }
            Kind::Docker(archive) => Ok(archive.document(descriptor.digest())?.into()),
            Kind::Stored(image) => {
                let image = Arc::clone(image);
                Ok(tokio::task::spawn_blocking(move || image.document(&wanted)).await??.into())
            }
        }
    }

    /// The file, or the part of one, that a blob is, to be read where it lies, in any order. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// When there is none, or the image is in a registry or as of `docker save`.
    pub fn blob_file(&self, digest: &registry::digest::Digest) -> Result<BlobFile, SourceError> {
        match &self.kind {
            Kind::Oci(layout) => layout.part(digest),
            Kind::Stored(image) => image.part(digest),
            Kind::Registry { .. } | Kind::Docker(_) => {
                Err(SourceError::Missing { place: format!("a file of blob {digest} of {}", self.name()) })
            }
        }
    }

    /// A layer's bytes, as they come.
    pub async fn blob(&self, descriptor: &Descriptor) -> Result<BlobStream, SourceError> {
        let wanted = descriptor.clone();
        match &self.kind {
            Kind::Registry { client, reference } => {
                let place = format!("blob {} of {reference}", descriptor.digest());
                let reader = client.blob(reference.repository(), descriptor.digest())?;
                Ok(BlobStream::registry(reader, place, descriptor.size()))
            }
            Kind::Oci(layout) => {
                let layout = Arc::clone(layout);
                tokio::task::spawn_blocking(move || layout.blob(&wanted)).await?
            }
            Kind::Docker(archive) => archive.blob(descriptor.digest()),
            Kind::Stored(image) => {
                let image = Arc::clone(image);
                tokio::task::spawn_blocking(move || image.blob(&wanted)).await?
            }
        }
    }
}

impl Kind {
    /// Opens what is on this machine; blocks on the disk.
    fn open(location: &Location, spool: &std::path::Path) -> Result<Self, SourceError> {
        let name = location.to_string();
        match location {
            Location::Oci(place) => {
                let files = Files::Directory(place.path.clone());
                Ok(Self::Oci(Arc::new(OciLayout::open(name, files, place.image.as_deref())?)))
            }
            Location::OciArchive(place) => {
                let files = Files::Archive(Arc::new(Archive::open(&place.path, spool)?));
                Ok(Self::Oci(Arc::new(OciLayout::open(name, files, place.image.as_deref())?)))
            }
            Location::DockerArchive(place) => {
                let (archive, wanted) =
                    (Arc::new(Archive::open(&place.path, spool)?), place.image.as_deref());
                if let Some(layout) = OciLayout::of_several_platforms(&name, &archive, wanted) {
                    return Ok(Self::Oci(Arc::new(layout)));
                }
                Ok(Self::Docker(Arc::new(DockerArchive::open(name, &archive, wanted)?)))
            }
            Location::Package(place) => {
                let all = StoredImages::open(&place.path, spool)?;
                Ok(Self::Stored(Arc::new(StoredImage::open(name, all, place.image.as_deref())?)))
            }
            Location::Registry(_) | Location::Directory(_) | Location::Files(_) => {
                Err(SourceError::NoImage { location: name })
            }
        }
    }
}

#[cfg(test)]
mod tests;
