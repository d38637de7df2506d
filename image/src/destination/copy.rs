//! Blobs that are kept as they are, on their way from where they are to where the image goes.

use std::path::PathBuf;

use crate::source::{Source, SourceError};
use registry::client::Descriptor;
use registry::digest::Digest;
use tokio::io::AsyncReadExt as _;

use super::{BlobWriter, Destination, StoreError};

/// Bytes of a file handed on at once.
const PIECE_BYTES: usize = 1 << 20;

/// Why a blob was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] SourceError),
    /// It cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The content of a file is not what its name says.
    #[error("{} has digest {found}", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// What its name should be.
        found: Digest,
    },
    /// It is nowhere.
    #[error("blob {digest} of the chunk dictionary is neither with the dictionary nor at the destination")]
    Missing {
        /// The blob.
        digest: Digest,
    },
}

/// Has the blob `descriptor` of `source` at `destination`, without sending it where the registry has it already. Returns
/// the bytes that were sent.
pub async fn copy_blob(
    source: &Source,
    descriptor: &Descriptor,
    destination: &dyn Destination,
) -> Result<u64, CopyError> {
    let Some(mut writer) = begin_copy(source, descriptor, destination).await? else { return Ok(0) };
    let mut blob = match source.blob(descriptor).await {
        Ok(blob) => blob,
        Err(error) => {
            writer.cancel().await;
            return Err(error.into());
        }
    };
    loop {
        let piece = match blob.next().await {
            Ok(Some(piece)) => piece,
            Ok(None) => return Ok(writer.finish(descriptor.digest()).await?),
            Err(error) => {
                writer.cancel().await;
                return Err(error.into());
            }
        };
        writer.write(piece).await?;
    }
}

/// Begins to copy the blob `descriptor` of `source` to `destination`; `None` if it is there now without being sent.
pub(crate) async fn begin_copy(
    source: &Source,
    descriptor: &Descriptor,
    destination: &dyn Destination,
) -> Result<Option<Box<dyn BlobWriter>>, CopyError> {
    let digest = descriptor.digest();
    if destination.has_blob(digest).await? {
        return Ok(None);
    }
    if let (Some((client, repository)), Some(from)) = (destination.repository(), source.repository())
        && repository != from
        && client.mount_blob(repository, from, digest).await.map_err(StoreError::from)?
    {
        return Ok(None);
    }
    Ok(Some(destination.begin().await?))
}

/// The size in bytes of a blob that has to be at `destination` already.
pub(crate) async fn at_destination(destination: &dyn Destination, digest: &Digest) -> Result<u64, CopyError> {
    let size = destination.blob_size(digest).await?;
    size.ok_or_else(|| CopyError::Missing { digest: digest.clone() })
}

/// Has the file at `path`, whose content has the digest `digest`, at `destination`. Returns its size in bytes.
pub async fn copy_file(
    path: PathBuf,
    digest: &Digest,
    destination: &dyn Destination,
) -> Result<u64, CopyError> {
    let failed = |error| CopyError::File { path: path.clone(), error };
    let mut file = tokio::fs::File::open(&path).await.map_err(failed)?;
    if destination.has_blob(digest).await? {
        return Ok(file.metadata().await.map_err(failed)?.len());
    }
    let mut hasher = registry::digest::Hasher::sha256();
    let mut writer = destination.begin().await?;
    loop {
        let mut piece = bytes::BytesMut::with_capacity(PIECE_BYTES);
        let read = file.read_buf(&mut piece).await;
        match read {
            Ok(0) => break,
            Ok(_) => {
                hasher.update(&piece);
                writer.write(piece.freeze()).await?;
            }
            Err(error) => {
                writer.cancel().await;
                return Err(failed(error));
            }
        }
    }
    // The file may have changed since somebody computed its digest, and not every destination hashes what it is given.
    let found = hasher.finish();
    if found != *digest {
        writer.cancel().await;
        return Err(CopyError::Digest { path, found });
    }
    Ok(writer.finish(digest).await?)
}
