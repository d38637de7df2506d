//! Where stored bytes of blobs come from.

mod http;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use registry::Repository;
use registry::client::{Client, Connection};
use registry::reference::InvalidReference;
use reqwest::StatusCode;

pub use http::HttpDirectoryBackend;
pub(crate) use http::{before_digits, host_of};

use super::totals::FailureCause;
use crate::control::{BackendSpec, BlobId};

/// Why stored bytes cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The registry did not deliver.
    #[error("{0}")]
    Registry(#[from] registry::client::Error),
    /// The registry does not have the blob.
    #[error("repository {repository} has no blob {blob}")]
    Missing {
        /// The repository.
        repository: String,
        /// The blob.
        blob: BlobId,
    },
    /// That is no place on an HTTP server.
    #[error("{url:?} is no directory on an HTTP server: {reason}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A directory's path is not absolute.
    #[error("path {0:?} is not absolute")]
    Relative(PathBuf),
    /// A repository's name is none.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// It cannot be used at all.
    #[error("{0}")]
    Unusable(String),
    /// The HTTP server did not deliver.
    #[error("{url}: {reason}")]
    Http {
        /// The blob's URL.
        url: String,
        /// The status that it answered with, if it did.
        status: Option<StatusCode>,
        /// Why not.
        reason: String,
    },
    /// The blob's file did not.
    #[error("blob file {}, bytes {} to {}: {source}", path.display(), range.start, range.end)]
    File {
        /// The file.
        path: PathBuf,
        /// The bytes.
        range: Range<u64>,
        /// Why not.
        source: io::Error,
    },
}

impl BackendError {
    /// What it is counted as.
    pub(super) fn cause(&self) -> FailureCause {
        let status = match self {
            Self::Missing { .. } => return FailureCause::Missing,
            Self::Registry(error) => error.status(),
            Self::Http { status, .. } => *status,
            _ => None,
        };
        match status {
            Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => FailureCause::Denied,
            Some(StatusCode::NOT_FOUND) => FailureCause::Missing,
            _ => FailureCause::Other,
        }
    }
}

impl BackendSpec {
    /// Whether it can be meant. Nobody is asked.
    ///
    /// # Errors
    ///
    /// [`BackendError`]: its repository, path or URL is none.
    pub fn check(&self) -> Result<(), BackendError> {
        match self {
            Self::Registry { repository } => Ok(Repository::parse(repository).map(drop)?),
            Self::Directory { path } if path.is_absolute() => Ok(()),
            Self::Directory { path } => Err(BackendError::Relative(path.clone())),
            Self::HttpDirectory { url } => http::directory(url).map(drop),
        }
    }
}

/// The backend on the network that a specification names, an HTTP directory over `connection`, which counts in `retries` what it
/// sends again. Nobody is asked yet.
///
/// # Errors
///
/// [`BackendError`]: it cannot be meant, is not on the network, or settings for its host are not valid.
pub(crate) fn open_backend(
    client: &Client,
    spec: &BackendSpec,
    connection: Connection,
    retries: Arc<AtomicU64>,
) -> Result<Arc<dyn Backend>, BackendError> {
    spec.check()?;
    Ok(match spec {
        BackendSpec::Registry { repository } => {
            let client = client.with_retry_counter(retries);
            Arc::new(RegistryBackend::new(client, Repository::parse(repository)?))
        }
        BackendSpec::Directory { .. } => {
            return Err(BackendError::Unusable("its files are opened elsewhere".to_owned()));
        }
        BackendSpec::HttpDirectory { url } => {
            Arc::new(HttpDirectoryBackend::over(client, url, connection, retries)?)
        }
    })
}

/// A backend that cannot be used: whoever asks it hears why.
#[derive(Debug)]
pub(crate) struct Unusable {
    name: String,
    reason: String,
}

impl Unusable {
    pub(crate) fn new(spec: &BackendSpec, reason: &str) -> Self {
        Self { name: spec.to_string(), reason: reason.to_owned() }
    }

    fn error(&self) -> BackendError {
        BackendError::Unusable(self.reason.clone())
    }
}

impl Backend for Unusable {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn size(&self, _: BlobId) -> BoxFuture<'_, Result<u64, BackendError>> {
        futures::future::ready(Err(self.error())).boxed()
    }

    fn read(&self, _: BlobId, _: Range<u64>) -> BoxStream<'static, Result<Bytes, BackendError>> {
        futures::stream::iter([Err(self.error())]).boxed()
    }
}

/// A place that has blobs.
pub trait Backend: Send + Sync {
    /// Which it is, for people and to tell it from others: the text of its specification.
    fn name(&self) -> String;

    /// Size in bytes of a blob.
    fn size(&self, blob: BlobId) -> BoxFuture<'_, Result<u64, BackendError>>;

    /// The bytes of a range of a blob, as they arrive. Not verified: that is the front's part.
    fn read(&self, blob: BlobId, range: Range<u64>) -> BoxStream<'static, Result<Bytes, BackendError>>;
}

/// The repository of an image.
#[derive(Debug)]
pub struct RegistryBackend {
    client: Client,
    repository: Repository,
}

impl RegistryBackend {
    /// Reads from `repository`.
    pub fn new(client: Client, repository: Repository) -> Self {
        Self { client, repository }
    }
}

fn digest(blob: BlobId) -> registry::Digest {
    registry::Digest::try_from(blob.to_string()).expect("sha256: and 64 digits are a digest")
}

impl Backend for RegistryBackend {
    fn name(&self) -> String {
        let repository = format!("{}/{}", self.repository.host(), self.repository.name());
        BackendSpec::Registry { repository }.to_string()
    }

    fn size(&self, blob: BlobId) -> BoxFuture<'_, Result<u64, BackendError>> {
        let size = async move {
            let size = self.client.blob_size(&self.repository, &digest(blob)).await?;
            let name = format!("{}/{}", self.repository.host(), self.repository.name());
            size.ok_or(BackendError::Missing { repository: name, blob })
        };
        size.boxed()
    }

    fn read(&self, blob: BlobId, range: Range<u64>) -> BoxStream<'static, Result<Bytes, BackendError>> {
        let len = range.end.saturating_sub(range.start);
        match self.client.blob_part(&self.repository, &digest(blob), range.start, len) {
            Ok(reader) => reader.into_stream().map(|bytes| bytes.map_err(BackendError::from)).boxed(),
            Err(error) => futures::stream::iter([Err(error.into())]).boxed(),
        }
    }
}

/// A directory of blob files, each named by the blob's 64 hexadecimal digits.
#[derive(Debug)]
pub struct DirectoryBackend {
    dir: PathBuf,
}

impl DirectoryBackend {
    /// Reads from files in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }
}

impl Backend for DirectoryBackend {
    fn name(&self) -> String {
        BackendSpec::Directory { path: self.dir.clone() }.to_string()
    }

    fn size(&self, blob: BlobId) -> BoxFuture<'_, Result<u64, BackendError>> {
        let path = self.dir.join(blob.0.to_string());
        let size = async move {
            let metadata = tokio::fs::metadata(&path).await;
            metadata.map(|metadata| metadata.len()).map_err(|source| BackendError::File {
                path,
                range: 0..0,
                source,
            })
        };
        size.boxed()
    }

    fn read(&self, blob: BlobId, range: Range<u64>) -> BoxStream<'static, Result<Bytes, BackendError>> {
        let path = self.dir.join(blob.0.to_string());
        let read = async move {
            let (file, wanted) = (path.clone(), range.clone());
            tokio::task::spawn_blocking(move || read_file(&file, &wanted))
                .await
                .unwrap_or_else(|panic| Err(io::Error::other(panic)))
                .map_err(|source| BackendError::File { path, range, source })
        };
        futures::stream::once(read).boxed()
    }
}

fn read_file(path: &std::path::Path, range: &Range<u64>) -> io::Result<Bytes> {
    let len = usize::try_from(range.end.saturating_sub(range.start)).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    File::open(path)?.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.into())
}
