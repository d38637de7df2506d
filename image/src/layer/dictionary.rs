//! Where the blobs of a chunk dictionary are: an image names those that it uses, so its repository has to have them.

use std::path::PathBuf;
use std::sync::Arc;

use rafs::build::Dictionary;
use rafs::tree::Image;
use registry::client::{Client, Descriptor};
use registry::digest::{Digest, sha256};
use registry::nydus;

use crate::destination::{CopyError, Destination, StoreError, at_destination, copy_blob, copy_file};
use crate::files::{FilesError, nydus_image};
use crate::location::Location;
use crate::platform::PlatformName;
use crate::source::Source;

/// The chunks that a nydus image has, for layers to refer to.
#[derive(Clone, Debug)]
pub struct ChunkDict {
    /// The chunks.
    pub(crate) chunks: Arc<Dictionary>,
    /// Where their blobs are.
    pub(crate) blobs: DictionaryBlobs,
    /// Over the ids of the blobs, which say all of their chunks.
    pub(crate) digest: Digest,
}

impl ChunkDict {
    /// The chunks of `image`, whose blobs are at `blobs`.
    pub fn new(image: Image, blobs: DictionaryBlobs) -> Self {
        let ids: String = image.blobs.iter().filter_map(|blob| blob.id).map(|id| format!("{id}\n")).collect();
        Self { chunks: Arc::new(Dictionary::new(image)), blobs, digest: sha256(ids.as_bytes()) }
    }

    /// The chunks of the nydus image that has this name in a registry, reached by `client`; of several that for this machine's
    /// platform.
    ///
    /// # Errors
    ///
    /// When it is no name of an image in a registry, or the image cannot be read.
    pub async fn load(name: &str, client: &Client) -> Result<Self, ChunkDictError> {
        let location = name.parse::<Location>().ok().filter(|place| matches!(place, Location::Registry(_)));
        let location = location.ok_or_else(|| ChunkDictError::Name { name: name.to_owned() })?;
        let loaded = nydus_image(&location, client, &PlatformName::host()).await;
        let (source, image) = loaded
            .map_err(|error| ChunkDictError::Image { name: name.to_owned(), error: Box::new(error) })?;
        Ok(Self::new(image, DictionaryBlobs::Registry(Box::new(source))))
    }
}

/// Why there is no dictionary.
#[derive(Debug, thiserror::Error)]
pub enum ChunkDictError {
    /// It is elsewhere, or the name means nothing.
    #[error("chunk-dict={name}: expected a nydus image in a registry")]
    Name {
        /// What was given.
        name: String,
    },
    /// The image cannot be read.
    #[error("chunk-dict={name}: {}", crate::describe(error.as_ref()))]
    Image {
        /// Its name.
        name: String,
        /// Why.
        error: Box<FilesError>,
    },
}

/// Where the blobs of a chunk dictionary are.
#[derive(Clone, Debug)]
pub enum DictionaryBlobs {
    /// In the repository of this image.
    Registry(Box<Source>),
    /// In a directory, each under its hexadecimal digest.
    Directory(PathBuf),
    /// Not known: at the destination, if anywhere.
    Unknown,
}

impl DictionaryBlobs {
    /// Has the blob at `destination`, and returns its size in bytes.
    pub(crate) async fn provide(
        &self,
        digest: &Digest,
        destination: &dyn Destination,
    ) -> Result<u64, CopyError> {
        let missing = || CopyError::Missing { digest: digest.clone() };
        match self {
            Self::Registry(source) => {
                let (client, reference) = source.registry().ok_or_else(missing)?;
                let size =
                    client.blob_size(reference.repository(), digest).await.map_err(StoreError::from)?;
                let size = size.ok_or_else(missing)?;
                let descriptor = Descriptor::new(nydus::MEDIA_TYPE_BLOB.into(), size, digest.clone());
                copy_blob(source, &descriptor, destination).await?;
                Ok(size)
            }
            Self::Directory(directory) => {
                let path = directory.join(digest.digest());
                if path.exists() {
                    copy_file(path, digest, destination).await
                } else {
                    at_destination(destination, digest).await
                }
            }
            Self::Unknown => at_destination(destination, digest).await,
        }
    }
}
