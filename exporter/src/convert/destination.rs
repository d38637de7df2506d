//! Where blobs and manifests go.

use bytes::Bytes;
use registry::client::{Client, Error, Upload};
use registry::digest::{self, Digest};
use registry::reference::{Reference, Repository};

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
    /// Nowhere: the image is made for its digest alone (`push=false`).
    Nowhere,
}

/// A blob on its way.
pub enum BlobWriter {
    /// To a registry.
    Registry(Box<Upload>),
    /// Nowhere; counts the bytes.
    Nowhere(u64),
}

impl Destination {
    /// Begins a blob.
    pub async fn begin(&self) -> Result<BlobWriter, Error> {
        match self {
            Self::Registry { client, repository } => {
                Ok(BlobWriter::Registry(Box::new(client.begin_upload(repository).await?)))
            }
            Self::Nowhere => Ok(BlobWriter::Nowhere(0)),
        }
    }

    /// Stores a small blob.
    pub async fn put_blob(&self, data: Bytes) -> Result<Digest, Error> {
        match self {
            Self::Registry { client, repository } => client.push_blob(repository, data).await,
            Self::Nowhere => Ok(digest::sha256(&data)),
        }
    }

    /// Stores a manifest under its digest.
    pub async fn put_manifest(&self, media_type: &str, manifest: Bytes) -> Result<Digest, Error> {
        let digest = digest::sha256(&manifest);
        if let Self::Registry { client, repository } = self {
            let reference = repository.with_digest(digest.clone());
            client.put_manifest(&reference, media_type, manifest).await?;
        }
        Ok(digest)
    }

    /// Stores a manifest under a name.
    pub async fn tag(&self, name: &Reference, media_type: &str, manifest: Bytes) -> Result<(), Error> {
        if let Self::Registry { client, .. } = self {
            client.put_manifest(name, media_type, manifest).await?;
        }
        Ok(())
    }
}

impl BlobWriter {
    /// Adds `data`, waiting while too much is on its way.
    pub async fn write(&mut self, data: Bytes) -> Result<(), Error> {
        match self {
            Self::Registry(upload) => upload.write(data).await,
            Self::Nowhere(size) => {
                *size += data.len() as u64;
                Ok(())
            }
        }
    }

    /// Has the blob checked against its digest and stored, and returns its size in bytes.
    pub async fn finish(self, digest: &Digest) -> Result<u64, Error> {
        match self {
            Self::Registry(upload) => upload.finish(digest).await,
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
