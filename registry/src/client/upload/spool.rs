//! Bytes of an upload, kept on disk for a registry that cannot resume it.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

use super::Error;

/// A file without a name, gone when it is closed.
pub(super) struct Spool {
    dir: PathBuf,
    file: File,
    len: u64,
}

impl Spool {
    pub(super) fn create(dir: &Path) -> Result<Self, Error> {
        let file =
            tempfile::tempfile_in(dir).map_err(|source| Error::Spool { dir: dir.to_owned(), source })?;
        Ok(Self { dir: dir.to_owned(), file: File::from_std(file), len: 0 })
    }

    /// Adds `data`, which starts at `start` of the blob: nothing if it was added before.
    pub(super) async fn append(&mut self, start: u64, data: &[u8]) -> Result<(), Error> {
        if start < self.len {
            return Ok(());
        }
        let written = async {
            self.file.seek(SeekFrom::Start(start)).await?;
            self.file.write_all(data).await?;
            self.file.flush().await
        };
        written.await.map_err(|source| Error::Spool { dir: self.dir.clone(), source })?;
        self.len = start + data.len() as u64;
        Ok(())
    }

    /// Up to `len` bytes from `offset` on.
    pub(super) async fn read(&mut self, offset: u64, len: usize) -> Result<Bytes, Error> {
        let size = len.min(usize::try_from(self.len.saturating_sub(offset)).unwrap_or(len));
        let mut data = vec![0; size];
        let read = async {
            self.file.seek(SeekFrom::Start(offset)).await?;
            self.file.read_exact(&mut data).await
        };
        read.await.map_err(|source| Error::Spool { dir: self.dir.clone(), source })?;
        Ok(data.into())
    }
}
