//! Saved images: what `cluster save` leaves in a repository or a directory, and how it is read.
//!
//! ```text
//! TAG ─> index ─> manifest "images" ─> config: the lock
//!              │                    └> layers: the table, the images' own indexes, manifests and configs, blobs
//!              └> manifest of each image and platform: the nydus image; with `--plain` the image's own
//! ```
//!
//! - `table`: chain ids, and what they are as RAFS.
//! - `bound`: what binds them to their cluster image.
//! - `set`: the table as a node's snapshotter has it.
//! - `place`: where they are, and what names them there.
//! - `store`: where blobs are.
//! - `error`: why they cannot be read.
//! - `parts`: all that they consist of, to be copied.
//!
//! Everything is found by digest from the index on, and verified. `docs/cluster.md` describes it for whoever reads it otherwise.

mod bound;
mod error;
mod parts;
mod place;
mod set;
mod store;
mod table;

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use flate2::read::GzDecoder;
use image::destination::BlobFolder;
use image::location::Location;
use image::source::{BlobStream, Source, SourceError};
use registry::client::{Client, Descriptor};
use registry::digest::Hasher;
use registry::{Digest, Repository};
use serde_json::Value;

use crate::lock::Lock;

pub use bound::{IMAGES_ANNOTATION, bind, bound, images_name};
pub use error::{OtherImage, SavedError};
pub(crate) use parts::{Parts, SavedManifest};
pub use place::SavedAt;
pub(crate) use store::BlobStore;
pub use table::{
    BlobEntry, BootstrapEntry, ChainEntry, ImageEntry, LayerEntry, Table, TableError, TreeEntry, VERSION,
};

/// What the manifest with the lock is.
pub const ARTIFACT_TYPE: &str = "application/vnd.nydus-cluster.images.v1";
/// The lock.
pub const LOCK_TYPE: &str = "application/vnd.nydus-cluster.images.lock.v1";
/// The table.
pub const TABLE_TYPE: &str = "application/vnd.nydus-cluster.images.table.v1";
/// An image's own index, manifest and config, as blobs: under their own media types registries would look for what they name.
pub const INDEX_TYPE: &str = "application/vnd.nydus-cluster.images.index.v1";
/// See [`INDEX_TYPE`].
pub const MANIFEST_TYPE: &str = "application/vnd.nydus-cluster.images.manifest.v1";
/// See [`INDEX_TYPE`].
pub const CONFIG_TYPE: &str = "application/vnd.nydus-cluster.images.config.v1";
/// Annotation with the name of an image.
pub const NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation with the media type under which a document is an image's.
pub const MEDIA_TYPE: &str = "io.nydus-cluster.media-type";

/// The repository that names the images of a directory, and its tag.
pub const DIRECTORY_REPOSITORY: &str = "nydus-cluster/images";
/// See [`DIRECTORY_REPOSITORY`].
pub const DIRECTORY_TAG: &str = "latest";

/// Where a directory in the storage layout of CNCF distribution has its repositories.
pub(crate) const REPOSITORIES: &str = "docker/registry/v2/repositories";

/// The most that is read of a lock or a table, in bytes: those of some 10,000 images.
const TEXT_LIMIT_BYTES: u64 = 64 << 20;

/// The most that a merged bootstrap may have, in bytes.
const BOOTSTRAP_LIMIT_BYTES: u64 = 4 << 30;

/// An image's index, manifest or config, word for word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedDocument {
    /// The media type under which it is an image's.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
}

/// Saved images.
#[derive(Clone, Debug)]
pub struct SavedImages {
    place: SavedAt,
    store: BlobStore,
    digest: Digest,
    lock: Lock,
    table: Option<Table>,
    documents: HashMap<Digest, SavedDocument>,
}

impl SavedImages {
    /// Opens the images that were saved at `place`.
    ///
    /// # Errors
    ///
    /// When there are none, or what names them is broken.
    pub async fn open(place: &SavedAt, client: &Client) -> Result<Self, SavedError> {
        Self::find(place, client).await?.ok_or_else(|| SavedError::NotThere(place.to_string()))
    }

    /// As [`open`](Self::open); `None` if nothing is there.
    ///
    /// # Errors
    ///
    /// When what is there are no saved images, or is broken.
    pub async fn find(place: &SavedAt, client: &Client) -> Result<Option<Self>, SavedError> {
        let store = match place {
            SavedAt::Repository(reference) => {
                BlobStore::Repository { client: client.clone(), repository: reference.repository().clone() }
            }
            SavedAt::Directory(path) => BlobStore::Folder(Arc::new(BlobFolder::new(path, path))),
            SavedAt::Package { path, digest } => {
                match Source::open(&place::within(path, digest), client).await {
                    Err(SourceError::NoSuchImage { .. }) => return Ok(None),
                    source => BlobStore::Package(source?),
                }
            }
        };
        let Some(index) = place.root(&store, client).await? else { return Ok(None) };
        let other = |reason: String| SavedError::Other { place: place.to_string(), reason };
        let json = |content: &[u8]| -> Result<Value, SavedError> {
            serde_json::from_slice(content).map_err(|error| other(error.to_string()))
        };
        let digest = registry::digest::sha256(&index);
        let index = json(&index)?;
        let entries = index.get("manifests").and_then(Value::as_array);
        let entry = entries
            .into_iter()
            .flatten()
            .find(|entry| entry.get("artifactType").and_then(Value::as_str) == Some(ARTIFACT_TYPE))
            .ok_or_else(|| {
                other(format!("expected an index that names a manifest of type {ARTIFACT_TYPE}"))
            })?;
        let descriptor = |value: &Value| -> Result<Descriptor, SavedError> {
            serde_json::from_value(value.clone()).map_err(|error| other(error.to_string()))
        };
        let entry = descriptor(entry)?;
        let images = json(&store.manifest(entry.digest(), entry.size()).await?)?;
        let config = descriptor(images.get("config").unwrap_or(&Value::Null))?;
        let (place, lock) = (place.clone(), Lock::default());
        let mut saved = Self { place, store, digest, lock, table: None, documents: HashMap::new() };
        let name = format!("the lock at {}", saved.place);
        saved.lock = Lock::parse(Path::new(&name), &saved.text(&config).await?)?;
        for layer in images.get("layers").and_then(Value::as_array).into_iter().flatten() {
            let layer = descriptor(layer)?;
            match layer.media_type().to_string().as_str() {
                TABLE_TYPE => saved.table = Some(Table::parse(&saved.text(&layer).await?)?),
                INDEX_TYPE | MANIFEST_TYPE | CONFIG_TYPE => {
                    let annotations = layer.annotations().clone().unwrap_or_default();
                    let media_type = annotations.get(MEDIA_TYPE).cloned().unwrap_or_default();
                    let document = SavedDocument { media_type, size: layer.size() };
                    saved.documents.insert(layer.digest().clone(), document);
                }
                _ => {}
            }
        }
        Ok(Some(saved))
    }

    /// A text among the parts.
    async fn text(&self, descriptor: &Descriptor) -> Result<String, SavedError> {
        let content =
            self.store.read_within(descriptor.digest(), descriptor.size(), TEXT_LIMIT_BYTES).await?;
        String::from_utf8(content.into()).map_err(|error| SavedError::Other {
            place: descriptor.digest().to_string(),
            reason: error.to_string(),
        })
    }

    /// The digest of the index that names all of it: under this they stay what they are.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The repository that they were saved to, if they are in one.
    pub fn repository(&self) -> Option<&Repository> {
        match &self.place {
            SavedAt::Repository(reference) => Some(reference.repository()),
            SavedAt::Directory(_) | SavedAt::Package { .. } => None,
        }
    }

    /// All of it as it is stored.
    pub(crate) async fn source(&self, client: &Client) -> Result<Source, SourceError> {
        let location = match &self.place {
            SavedAt::Repository(reference) => {
                Location::Registry(reference.repository().with_digest(self.digest.clone()))
            }
            SavedAt::Directory(path) | SavedAt::Package { path, .. } => place::within(path, &self.digest),
        };
        Source::open(&location, client).await
    }

    /// Whether images that `lock` has too are the same ones here. One that was not saved is pulled from where it comes from. One of an archive
    /// may be here together with those that other platforms have in archives of their own.
    ///
    /// # Errors
    ///
    /// [`OtherImage`], which names the first that is another one.
    pub fn expect(&self, lock: &Lock) -> Result<(), Box<OtherImage>> {
        let other = lock.images.iter().find_map(|image| {
            let found = self.lock.get(&image.reference)?;
            if found.digest == image.digest || found.unites(image) {
                return None;
            }
            Some(Box::new(OtherImage {
                image: image.reference.clone(),
                expected: image.digest.clone(),
                found: found.digest.clone(),
                saved: self.digest.clone(),
            }))
        });
        other.map_or(Ok(()), Err)
    }

    /// The lock: which images these are, by name.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// The table; none where images are plain alone.
    pub fn table(&self) -> Option<&Table> {
        self.table.as_ref()
    }

    /// The images' own indexes, manifests and configs, by digest.
    pub fn documents(&self) -> &HashMap<Digest, SavedDocument> {
        &self.documents
    }

    /// The content of one of [`documents`](Self::documents), word for word; `None` if it is none of them.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or does not have its digest.
    pub async fn document(&self, digest: &Digest) -> Result<Option<Bytes>, SavedError> {
        let Some(document) = self.documents.get(digest) else { return Ok(None) };
        Ok(Some(self.store.read(digest, document.size).await?))
    }

    /// The merged bootstrap of a chain: `image.boot`, verified.
    ///
    /// # Errors
    ///
    /// When the chain has none, or it cannot be read.
    pub async fn bootstrap(&self, chain: &Digest) -> Result<Vec<u8>, SavedError> {
        let entry = self.table.as_ref().and_then(|table| table.chains.get(chain)?.bootstrap.clone());
        let entry = entry.ok_or_else(|| self.unknown("chain with a bootstrap", chain))?;
        let packed = self.store.read_within(&entry.digest, entry.size, BOOTSTRAP_LIMIT_BYTES).await?;
        let digest = entry.digest.clone();
        let unpacked = tokio::task::spawn_blocking(move || unpack(&packed, &entry.diff_id)).await?;
        unpacked.map_err(|error| SavedError::Bootstrap { digest, reason: error.to_string() })
    }

    /// A layer's own tree, by diff id: read from the end of its blob, verified.
    ///
    /// # Errors
    ///
    /// When nothing is known of the layer, or it cannot be read.
    pub async fn layer(&self, diff_id: &Digest) -> Result<rafs::tree::Layer, SavedError> {
        let unknown = || self.unknown("layer", diff_id);
        let table = self.table.as_ref().ok_or_else(unknown)?;
        let layer = table.layers.get(diff_id).ok_or_else(unknown)?;
        let entry = table.blobs.get(&layer.blob).ok_or_else(unknown)?;
        read_layer(&self.store, &layer.blob, entry).await
    }

    /// Bytes of a blob that the table names, as they are stored. Not verified: its chunks have digests of their own.
    ///
    /// # Errors
    ///
    /// When it is no blob of the table, or cannot be read.
    pub async fn blob_range(&self, blob: &Digest, range: Range<u64>) -> Result<Vec<u8>, SavedError> {
        let size = self.blob_size(blob)?;
        let (start, end) = (range.start.min(size), range.end.min(size));
        let failed = |error| SavedError::Io { path: blob.to_string().into(), error };
        self.store.range(blob, start..end).await.map_err(failed)
    }

    /// A whole blob that the table names, as it comes, verified at its end.
    ///
    /// # Errors
    ///
    /// As [`blob_range`](Self::blob_range).
    pub async fn blob(&self, blob: &Digest) -> Result<BlobStream, SavedError> {
        Ok(self.store.stream(blob, self.blob_size(blob)?).await?)
    }

    fn blob_size(&self, blob: &Digest) -> Result<u64, SavedError> {
        let entry = self.table.as_ref().and_then(|table| table.blobs.get(blob));
        entry.map(|entry| entry.size).ok_or_else(|| self.unknown("blob", blob))
    }

    fn unknown(&self, what: &'static str, digest: &Digest) -> SavedError {
        SavedError::Unknown { what, digest: digest.clone() }
    }
}

/// Reads the tree of the layer that a blob holds.
pub(crate) async fn read_layer(
    store: &BlobStore,
    blob: &Digest,
    entry: &BlobEntry,
) -> Result<rafs::tree::Layer, SavedError> {
    let unknown = || SavedError::Unknown { what: "blob", digest: blob.clone() };
    let (size, toc) = (entry.size, rafs_digest(&entry.toc));
    let id = rafs_digest(blob).ok_or_else(unknown)?;
    let read = store.blocking(blob);
    Ok(tokio::task::spawn_blocking(move || rafs::share::read_layer(id, size, toc, read)).await??)
}

/// A digest as `rafs` has it; `None` if it is no SHA-256.
pub(crate) fn rafs_digest(digest: &Digest) -> Option<rafs::digest::Digest> {
    (digest.algorithm().as_ref() == "sha256").then(|| digest.digest().parse().ok()).flatten()
}

/// A SHA-256 of `rafs` as everybody else has it.
pub(crate) fn oci_digest(digest: rafs::digest::Digest) -> Digest {
    format!("sha256:{digest}").parse().expect("64 hexadecimal digits behind sha256: are a digest")
}

/// The bootstrap in the tar of a bootstrap layer.
fn unpack(packed: &[u8], diff_id: &Digest) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    let read = GzDecoder::new(packed).take(BOOTSTRAP_LIMIT_BYTES).read_to_end(&mut plain)?;
    let mut hasher = Hasher::like(diff_id).map_err(io::Error::other)?;
    hasher.update(&plain);
    let found = hasher.finish();
    if found != *diff_id {
        return Err(io::Error::other(format!("its tar of {read} bytes is {found}; expected {diff_id}")));
    }
    for entry in tar::Archive::new(plain.as_slice()).entries()? {
        let mut entry = entry?;
        if entry.path()?.as_os_str() == "image/image.boot" {
            let mut bootstrap = Vec::new();
            entry.read_to_end(&mut bootstrap)?;
            return Ok(bootstrap);
        }
    }
    Err(io::Error::other("there is no image/image.boot in it"))
}
