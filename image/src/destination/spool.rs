//! Blobs that stay on this machine until somebody says whose they are, in unnamed files.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;
use registry::digest::Digest;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

use super::{Destination, StoreError};

/// Bytes of a file handed on at once.
const PIECE_BYTES: usize = 1 << 20;

/// Room for such blobs.
#[derive(Debug)]
pub struct SpoolSpace {
    dir: PathBuf,
    limit: u64,
    left: AtomicU64,
}

/// A blob in it. Dropped, it is gone.
pub struct SpooledBlob {
    file: File,
    size: u64,
    space: Arc<SpoolSpace>,
}

impl SpoolSpace {
    /// Room for `bytes` in the folder `dir`.
    pub fn new(dir: &Path, bytes: u64) -> Arc<Self> {
        Arc::new(Self { dir: dir.to_owned(), limit: bytes, left: AtomicU64::new(bytes) })
    }

    /// The bytes that still fit.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Begins a blob.
    pub async fn begin(self: &Arc<Self>) -> Result<SpooledBlob, StoreError> {
        let dir = self.dir.clone();
        let file = tokio::task::spawn_blocking(move || tempfile::tempfile_in(dir)).await?;
        let file = file.map_err(|error| self.failed("write to", error))?;
        Ok(SpooledBlob { file: File::from_std(file), size: 0, space: Arc::clone(self) })
    }

    fn failed(&self, doing: &'static str, error: std::io::Error) -> StoreError {
        StoreError::File { doing, path: self.dir.clone(), error }
    }
}

impl SpooledBlob {
    /// Adds `data`, if there is room for it.
    pub async fn write(&mut self, data: &[u8]) -> Result<(), StoreError> {
        let size = data.len() as u64;
        let taken =
            self.space.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(size));
        let SpoolSpace { dir, limit, .. } = &*self.space;
        taken.map_err(|_| StoreError::SpoolFull { path: dir.clone(), limit: *limit })?;
        self.size += size;
        self.file.write_all(data).await.map_err(|error| self.space.failed("write to", error))
    }

    /// Waits until all of it is in the file: only then is it known that the disk had room.
    pub async fn flush(&mut self) -> Result<(), StoreError> {
        self.file.flush().await.map_err(|error| self.space.failed("write to", error))
    }

    /// Has the blob, whose digest is `digest`, stored at `destination`, and returns its size in bytes.
    pub async fn send(mut self, destination: &dyn Destination, digest: &Digest) -> Result<u64, StoreError> {
        if destination.has_blob(digest).await? {
            return Ok(self.size);
        }
        let space = Arc::clone(&self.space);
        self.flush().await?;
        self.file.seek(SeekFrom::Start(0)).await.map_err(|error| space.failed("read from", error))?;
        let mut writer = destination.begin().await?;
        loop {
            let mut piece = BytesMut::with_capacity(PIECE_BYTES);
            match self.file.read_buf(&mut piece).await {
                Ok(0) => return writer.finish(digest).await,
                Ok(_) => writer.write(piece.freeze()).await?,
                Err(error) => {
                    writer.cancel().await;
                    return Err(space.failed("read from", error));
                }
            }
        }
    }
}

impl Drop for SpooledBlob {
    fn drop(&mut self) {
        self.space.left.fetch_add(self.size, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::Nowhere;

    #[tokio::test]
    async fn what_does_not_fit_is_refused_and_room_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let space = SpoolSpace::new(dir.path(), 10);
        let mut blob = space.begin().await.unwrap();
        blob.write(b"12345678").await.unwrap();
        assert!(matches!(blob.write(b"123").await, Err(StoreError::SpoolFull { limit: 10, .. })));
        assert_eq!(space.left(), 2);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let digest = registry::digest::sha256(b"12345678");
        assert_eq!(blob.send(&Nowhere, &digest).await.unwrap(), 8);
        assert_eq!(space.left(), 10);
    }
}
