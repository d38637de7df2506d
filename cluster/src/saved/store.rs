//! Where saved images are: the blobs of a directory that a registry can serve, of a repository, or of a package.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use image::destination::BlobFolder;
use image::location::Location;
use image::source::{BlobStream, Source, SourceError};
use registry::client::{Client, Descriptor};
use registry::{Digest, Repository};

/// Such a place.
#[derive(Clone, Debug)]
pub(crate) enum BlobStore {
    Folder(Arc<BlobFolder>),
    Repository {
        client: Client,
        repository: Repository,
    },
    /// Only to be read.
    Package(Source),
}

impl BlobStore {
    /// Whether all of the blob is there.
    pub(crate) async fn has(&self, digest: &Digest) -> Result<bool, registry::client::Error> {
        match self {
            Self::Folder(folder) => Ok(folder.size(digest).is_some()),
            Self::Repository { client, repository } => client.has_blob(repository, digest).await,
            Self::Package(source) => Ok(source.blob_file(digest).is_ok()),
        }
    }

    /// Whether the manifest is there.
    pub(crate) async fn has_manifest(&self, digest: &Digest) -> Result<bool, registry::client::Error> {
        match self {
            Self::Folder(folder) => Ok(folder.size(digest).is_some()),
            Self::Repository { client, repository } => {
                Ok(client.head_manifest(&repository.with_digest(digest.clone())).await?.is_some())
            }
            Self::Package(source) => Ok(source.blob_file(digest).is_ok()),
        }
    }

    /// A manifest of this size, whole and verified.
    pub(crate) async fn manifest(&self, digest: &Digest, size: u64) -> Result<Bytes, SourceError> {
        match self {
            Self::Folder(_) | Self::Package(_) => self.read(digest, size).await,
            Self::Repository { client, repository } => {
                Ok(client.manifest(&repository.with_digest(digest.clone())).await?.1)
            }
        }
    }

    /// A blob of this size, whole, as it comes: verified at its end.
    pub(crate) async fn stream(&self, digest: &Digest, size: u64) -> Result<BlobStream, SourceError> {
        match self {
            Self::Folder(folder) => {
                let missing = || SourceError::Missing { place: format!("blob {digest}") };
                BlobStream::of_file(&folder.path(digest).ok_or_else(missing)?, digest, size)
            }
            Self::Repository { client, repository } => {
                let location = Location::Registry(repository.with_digest(digest.clone()));
                Source::open(&location, client).await?.blob(&described(digest, size)).await
            }
            Self::Package(source) => source.blob(&described(digest, size)).await,
        }
    }

    /// A small blob of this size, whole and verified.
    pub(crate) async fn read(&self, digest: &Digest, size: u64) -> Result<Bytes, SourceError> {
        self.read_within(digest, size, registry::client::MANIFEST_LIMIT_BYTES as u64).await
    }

    /// [`read`](Self::read) of up to `limit` bytes.
    pub(crate) async fn read_within(
        &self,
        digest: &Digest,
        size: u64,
        limit: u64,
    ) -> Result<Bytes, SourceError> {
        if size > limit {
            return Err(SourceError::TooLarge { place: format!("blob {digest}"), size, limit });
        }
        let mut stream = self.stream(digest, size).await?;
        let mut content = Vec::new();
        while let Some(piece) = stream.next().await? {
            content.extend_from_slice(&piece);
        }
        Ok(content.into())
    }

    /// Bytes of a blob. Not verified.
    pub(crate) async fn range(&self, digest: &Digest, range: Range<u64>) -> io::Result<Vec<u8>> {
        match self {
            Self::Folder(folder) => {
                let path = folder.path(digest).ok_or_else(|| io::Error::other("no digest by sha256"))?;
                tokio::task::spawn_blocking(move || {
                    use std::os::unix::fs::FileExt as _;
                    let file = std::fs::File::open(path)?;
                    // Before memory is taken for it.
                    if range.start > range.end || range.end > file.metadata()?.len() {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let mut bytes = vec![0; (range.end - range.start) as usize];
                    file.read_exact_at(&mut bytes, range.start)?;
                    Ok(bytes)
                })
                .await?
            }
            Self::Package(source) => {
                let part = source.blob_file(digest).map_err(io::Error::other)?;
                tokio::task::spawn_blocking(move || part.read(range)).await?
            }
            Self::Repository { client, repository } => {
                let length = range.end.saturating_sub(range.start);
                if length == 0 {
                    return Ok(Vec::new());
                }
                let part = client.blob_range(repository, digest, range.start, length);
                part.await.map(Into::into).map_err(io::Error::other)
            }
        }
    }

    /// As [`range`](Self::range), for code that runs on a thread that may block.
    pub(crate) fn blocking(&self, digest: &Digest) -> impl Fn(Range<u64>) -> io::Result<Vec<u8>> + use<> {
        let (store, digest) = (self.clone(), digest.clone());
        let handle = tokio::runtime::Handle::current();
        move |range| handle.block_on(store.range(&digest, range))
    }
}

/// A blob as it is asked for: of its media type nobody wants to know.
fn described(digest: &Digest, size: u64) -> Descriptor {
    Descriptor::new(registry::nydus::MEDIA_TYPE_BLOB.into(), size, digest.clone())
}
