//! Where blobs and manifests go.
//!
//! - `staging`: files of this machine on their way to their names.
//! - `spool`: blobs that stay on this machine until it is known whose they are.
//! - `copy`: blobs that are kept as they are.

mod copy;
mod spool;
mod staging;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use registry::client::{Client, Upload};
use registry::digest::{self, Digest};
use registry::reference::{Reference, Repository};

pub(crate) use self::copy::at_destination;
pub use self::copy::{CopyError, copy_blob, copy_file};
pub use self::spool::{SpoolSpace, SpooledBlob};
use self::staging::StagedBlob;
pub use self::staging::{Shape, Staging};

/// Where an image goes.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A repository of a registry.
    Registry {
        /// The client to reach it with.
        client: Client,
        /// The repository.
        repository: Repository,
    },
    /// Files of this machine, which get their names when all are there.
    Local(Arc<Staging>),
    /// Nowhere: the image is made for its digest alone (`push=false`).
    Nowhere,
}

/// Why something was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The registry did not take it.
    #[error(transparent)]
    Registry(#[from] registry::client::Error),
    /// A file cannot be written.
    #[error("cannot {doing} {}: {error}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        error: std::io::Error,
    },
    /// What is at the destination would be lost or mixed up.
    #[error("{} {reason}", path.display())]
    Occupied {
        /// The destination.
        path: PathBuf,
        /// What is there, and what was expected.
        reason: String,
    },
    /// There is no room for blobs that nobody has asked for yet.
    #[error("blobs that nobody has asked for yet would take more than {limit} bytes in {}", path.display())]
    SpoolFull {
        /// The folder.
        path: PathBuf,
        /// What they may take there, in bytes.
        limit: u64,
    },
    /// The thread that writes is gone.
    #[error("writing ended unexpectedly: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// A blob on its way.
pub enum BlobWriter {
    /// To a registry.
    Registry(Box<Upload>),
    /// To a file.
    Local(StagedBlob),
    /// Nowhere; counts the bytes.
    Nowhere(u64),
}

impl Destination {
    /// Begins a blob.
    pub async fn begin(&self) -> Result<BlobWriter, StoreError> {
        match self {
            Self::Registry { client, repository } => {
                Ok(BlobWriter::Registry(Box::new(client.begin_upload(repository).await?)))
            }
            Self::Local(staging) => Ok(BlobWriter::Local(staging.begin().await?)),
            Self::Nowhere => Ok(BlobWriter::Nowhere(0)),
        }
    }

    /// Stores a small blob.
    pub async fn put_blob(&self, data: Bytes) -> Result<Digest, StoreError> {
        match self {
            Self::Registry { client, repository } => Ok(client.push_blob(repository, data).await?),
            Self::Local(staging) => {
                let digest = digest::sha256(&data);
                let mut blob = staging.begin().await?;
                blob.write(&data).await?;
                blob.finish(&digest).await?;
                Ok(digest)
            }
            Self::Nowhere => Ok(digest::sha256(&data)),
        }
    }

    /// Whether the blob is there already.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        match self {
            Self::Registry { client, repository } => Ok(client.has_blob(repository, digest).await?),
            Self::Local(staging) => Ok(staging.has(digest)),
            Self::Nowhere => Ok(true),
        }
    }

    /// Stores a manifest under its digest.
    pub async fn put_manifest(&self, media_type: &str, manifest: Bytes) -> Result<Digest, StoreError> {
        let digest = digest::sha256(&manifest);
        match self {
            Self::Registry { client, repository } => {
                let reference = repository.with_digest(digest.clone());
                client.put_manifest(&reference, media_type, manifest).await?;
            }
            Self::Local(_) => drop(self.put_blob(manifest).await?),
            Self::Nowhere => {}
        }
        Ok(digest)
    }

    /// Stores a manifest under a name. Files get theirs by [`Staging::commit`].
    pub async fn tag(&self, name: &Reference, media_type: &str, manifest: Bytes) -> Result<(), StoreError> {
        if let Self::Registry { client, .. } = self {
            client.put_manifest(name, media_type, manifest).await?;
        }
        Ok(())
    }
}

impl BlobWriter {
    /// Adds `data`, waiting while too much is on its way.
    pub async fn write(&mut self, data: Bytes) -> Result<(), StoreError> {
        match self {
            Self::Registry(upload) => Ok(upload.write(data).await?),
            Self::Local(blob) => blob.write(&data).await,
            Self::Nowhere(size) => {
                *size += data.len() as u64;
                Ok(())
            }
        }
    }

    /// Has the blob stored under its digest, and returns its size in bytes. A registry checks the digest; a file's is
    /// the caller's word.
    pub async fn finish(self, digest: &Digest) -> Result<u64, StoreError> {
        match self {
            Self::Registry(upload) => Ok(upload.finish(digest).await?),
            Self::Local(blob) => blob.finish(digest).await,
            Self::Nowhere(size) => Ok(size),
        }
    }

    /// Gives the blob up.
    pub async fn cancel(self) {
        if let Self::Registry(upload) = self {
            upload.cancel().await;
        }
    }
}
