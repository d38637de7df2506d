//! Blobs in an archive, for a mount.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;
use fuse_daemon::control::BlobId;
use fuse_daemon::worker::{Backend, BackendError};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use image::source::{BlobFile, Source};
use registry::Digest;

/// The blobs of a layout in a tar, read where they lie.
pub(super) struct ArchiveBackend {
    source: Source,
}

impl ArchiveBackend {
    pub(super) fn new(source: Source) -> Self {
        Self { source }
    }

    async fn file(source: Source, blob: BlobId) -> io::Result<BlobFile> {
        let digest = Digest::try_from(blob.to_string()).map_err(io::Error::other)?;
        blocking(move || source.blob_file(&digest).map_err(io::Error::other)).await
    }

    fn failed(&self, range: Range<u64>) -> impl FnOnce(io::Error) -> BackendError + use<> {
        let path = PathBuf::from(self.source.name());
        move |source| BackendError::File { path, range, source }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

impl Backend for ArchiveBackend {
    fn name(&self) -> String {
        self.source.name()
    }

    fn size(&self, blob: BlobId) -> BoxFuture<'_, Result<u64, BackendError>> {
        let file = Self::file(self.source.clone(), blob);
        let failed = self.failed(0..0);
        async move { file.await.map(|file| file.size()).map_err(failed) }.boxed()
    }

    fn read(&self, blob: BlobId, range: Range<u64>) -> BoxStream<'static, Result<Bytes, BackendError>> {
        let file = Self::file(self.source.clone(), blob);
        let failed = self.failed(range.clone());
        let read = async move {
            let file = file.await?;
            blocking(move || file.read(range)).await
        };
        futures::stream::once(async move { read.await.map(Bytes::from).map_err(failed) }).boxed()
    }
}
