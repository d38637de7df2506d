//! Blobs that stay on this machine until somebody says whose they are, in unnamed files.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use registry::digest::Digest;
use tokio::sync::watch;

use super::{BlobWriter, Destination, DiskShare, DiskSpace, DiskUse, StoreError, failed};

/// Bytes of a file handed on at once.
const PIECE_BYTES: usize = 1 << 20;

/// What a [`SpoolSpace`] is for.
const UNASKED: DiskUse = DiskUse {
    what: "blobs that nobody has asked for yet",
    setting: "exporter.ahead_bytes",
    of: "all builds",
    instead: "have their layers converted when they are asked for, which takes longer",
};

/// Room for such blobs.
#[derive(Debug)]
pub struct SpoolSpace(Arc<DiskSpace>);

/// A blob in it that is being made. Dropped before it is complete, it is given up.
///
/// It blocks: it is for threads that may.
#[derive(Debug)]
pub struct SpoolWriter {
    spooled: Arc<Spooled>,
    written: watch::Sender<Written>,
    /// Why it takes no more.
    failure: Option<StoreError>,
}

/// A blob in it, which may still be made. When nobody has it any more, it is gone.
#[derive(Clone, Debug)]
pub struct SpooledBlob {
    spooled: Arc<Spooled>,
    written: watch::Receiver<Written>,
}

/// A file that takes room.
#[derive(Debug)]
struct Spooled {
    // Closed before its room is given back.
    file: File,
    room: DiskShare,
}

/// How much of a blob is in its file.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    size: u64,
    complete: bool,
}

impl SpoolSpace {
    /// Room for `bytes` in the folder `dir`.
    pub fn new(dir: &Path, bytes: u64) -> Arc<Self> {
        Arc::new(Self(DiskSpace::new(dir, bytes, &UNASKED)))
    }

    /// The bytes that still fit.
    pub fn left(&self) -> u64 {
        self.0.left()
    }

    /// Begins a blob.
    pub async fn begin(self: &Arc<Self>) -> Result<(SpoolWriter, SpooledBlob), StoreError> {
        let dir = self.0.dir().to_owned();
        let file = tokio::task::spawn_blocking(move || tempfile::tempfile_in(dir)).await?;
        let file = file.map_err(failed("write to", self.0.dir()))?;
        let spooled = Arc::new(Spooled { file, room: DiskShare::of(&self.0) });
        let (sender, written) = watch::channel(Written::default());
        let writer = SpoolWriter { spooled: Arc::clone(&spooled), written: sender, failure: None };
        Ok((writer, SpooledBlob { spooled, written }))
    }
}

impl SpoolWriter {
    /// All of the blob has been written.
    pub fn complete(self) {
        self.written.send_modify(|written| written.complete = true);
    }

    /// Why a write failed, if one did.
    pub fn into_failure(self) -> Option<StoreError> {
        self.failure
    }

    /// Adds `data`, if there is room for it.
    fn add(&self, data: &[u8]) -> Result<(), StoreError> {
        let Spooled { file, room } = &*self.spooled;
        let size = data.len() as u64;
        room.take(size)?;
        let at = self.written.borrow().size;
        file.write_all_at(data, at).map_err(failed("write to", room.space().dir()))?;
        self.written.send_modify(|written| written.size += size);
        Ok(())
    }
}

impl Write for SpoolWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        // Nobody has the blob any more.
        if self.written.is_closed() {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "nobody waits for the blob"));
        }
        match self.add(data) {
            Ok(()) => Ok(data.len()),
            Err(error) => {
                let told = io::Error::other(error.to_string());
                self.failure = Some(error);
                Err(told)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SpooledBlob {
    /// Whether all of it is in its file.
    pub fn is_complete(&self) -> bool {
        self.written.borrow().complete
    }

    /// Bytes that are in its file.
    #[cfg(test)]
    pub(crate) fn size(&self) -> u64 {
        self.written.borrow().size
    }

    /// Has the blob, which is complete and whose digest is `digest`, stored at `destination`, and returns its size in bytes.
    pub async fn store(self, destination: &dyn Destination, digest: &Digest) -> Result<u64, StoreError> {
        let size = self.written.borrow().size;
        if destination.has_blob(digest).await? {
            return Ok(size);
        }
        let space = Arc::clone(self.spooled.room.space());
        match self.send(destination).await? {
            Some(writer) => writer.finish(digest).await,
            None => Err(failed("read from", space.dir())(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Sends the blob to `destination`, also while it is made; it is for the caller to finish it there. `None` if it was
    /// given up before it was complete.
    pub async fn send(
        mut self,
        destination: &dyn Destination,
    ) -> Result<Option<Box<dyn BlobWriter>>, StoreError> {
        let mut writer = destination.begin().await?;
        let mut sent = 0;
        loop {
            let more = self.written.wait_for(|written| written.size > sent || written.complete).await;
            let Some(written) = more.ok().map(|written| *written) else {
                writer.cancel().await;
                return Ok(None);
            };
            if written.size == sent {
                return Ok(Some(writer));
            }
            let length = PIECE_BYTES.min(usize::try_from(written.size - sent).unwrap_or(PIECE_BYTES));
            match self.read(sent, length).await {
                Ok(piece) => writer.write(piece).await?,
                Err(error) => {
                    writer.cancel().await;
                    return Err(error);
                }
            }
            sent += length as u64;
        }
    }

    async fn read(&self, at: u64, length: usize) -> Result<Bytes, StoreError> {
        let spooled = Arc::clone(&self.spooled);
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; length];
            let read = spooled.file.read_exact_at(&mut piece, at);
            read.map_err(failed("read from", spooled.room.space().dir()))?;
            Ok(piece.into())
        });
        read.await?
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
        let (mut writer, blob) = space.begin().await.unwrap();
        writer.write_all(b"12345678").unwrap();
        assert!(writer.write_all(b"123").is_err());
        assert!(matches!(writer.into_failure(), Some(StoreError::DiskFull { limit: 10, .. })));
        assert_eq!(space.left(), 2);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(blob.send(&Nowhere).await.unwrap().is_none(), "half a blob was sent");
        assert_eq!(space.left(), 10);
    }

    #[tokio::test]
    async fn a_complete_blob_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, blob) = SpoolSpace::new(dir.path(), 10).begin().await.unwrap();
        writer.write_all(b"12345678").unwrap();
        assert!(!blob.is_complete());
        writer.complete();
        assert!(blob.is_complete());
        assert_eq!(blob.store(&Nowhere, &registry::digest::sha256(b"12345678")).await.unwrap(), 8);
    }

    #[tokio::test]
    async fn a_blob_that_nobody_has_takes_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, blob) = SpoolSpace::new(dir.path(), 10).begin().await.unwrap();
        drop(blob);
        assert_eq!(writer.write(b"1").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
