//! The file of a blob that is being written as a stream, from its begin to where the blob ends.

use std::fs::{self, File};
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use registry::digest::{Digest, Hasher};
use rustix::fs::{Advice, fadvise};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::FileId;
use super::watch::Watch;

/// How far a file is read is told in steps of so many bytes.
const TOLD_BYTES: u64 = 1 << 20;

/// A file that is followed is forgotten in steps of so many bytes.
const STEP_BYTES: u64 = 8 << 20;

/// So far behind what is read, pages have been written to the disk, if it is a fast one.
const WRITE_BACK_BYTES: u64 = 64 << 20;

/// Reads a blob, hashing it. It blocks: it is for threads that may, with a runtime around them.
#[derive(Debug)]
pub(super) struct BlobReader {
    file: Arc<File>,
    hasher: Hasher,
    /// Bytes read.
    size: u64,
    told: watch::Sender<u64>,
    /// How to find out that there is more.
    writing: Writing,
    stop: CancellationToken,
}

/// A file that somebody writes to.
#[derive(Debug)]
pub(super) struct Writing {
    path: PathBuf,
    id: FileId,
    watch: Watch,
    /// Up to where pages are forgotten, or being written to the disk for that.
    forgotten: u64,
}

impl BlobReader {
    /// Reads `file` from where it stands until it has been moved away. When `stop` is cancelled, it fails.
    pub(super) fn new(file: File, writing: Writing, hasher: Hasher, stop: CancellationToken) -> Self {
        Self { file: Arc::new(file), hasher, size: 0, told: watch::Sender::new(0), writing, stop }
    }

    /// The file, as long as it is read or may be asked for its digest.
    pub(super) fn file(&self) -> Weak<File> {
        Arc::downgrade(&self.file)
    }

    /// Tells how many bytes have been read: at each step, and where there are no more for now.
    pub(super) fn position(&self) -> watch::Receiver<u64> {
        self.told.subscribe()
    }

    /// Digest and size in bytes of what has been read.
    pub(super) fn content(&self) -> (Digest, u64) {
        (self.hasher.clone().finish(), self.size)
    }
}

impl Read for BlobReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut complete = false;
        loop {
            if self.stop.is_cancelled() {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the conversion was cancelled"));
            }
            let length = (&*self.file).read(out)?;
            if length > 0 {
                self.hasher.update(&out[..length]);
                self.size += length as u64;
                if self.size >= *self.told.borrow() + TOLD_BYTES {
                    // An error if the blob was given up.
                    self.writing.is_complete(&self.file)?;
                    self.told.send_replace(self.size);
                    self.writing.forget(&self.file, self.size);
                }
                return Ok(length);
            }
            self.told.send_replace(self.size);
            if complete {
                return Ok(0);
            }
            // Read once more then: what a writer wrote before it moved the file is there after this.
            complete = self.writing.is_complete(&self.file)?;
            if !complete {
                self.writing.wait(&self.stop)?;
            }
        }
    }
}

impl Writing {
    /// The file `id`, which is at `path` as long as it is written to; `watch` watches the directory of `path`.
    pub(super) fn new(path: PathBuf, id: FileId, watch: Watch) -> Self {
        Self { path, id, watch, forgotten: 0 }
    }

    /// Has the kernel write to the disk, and then forget, what has been read up to `read`. The writer waits for the disk in
    /// the end, and gets back pages that are warm instead of new ones.
    fn forget(&mut self, file: &File, read: u64) {
        if read < self.forgotten + STEP_BYTES {
            return;
        }
        let size = NonZeroU64::new(read - self.forgotten);
        // This begins to write what is dirty, and forgets what is not: each page's turn comes twice.
        for begin in [self.forgotten, self.forgotten.saturating_sub(WRITE_BACK_BYTES)] {
            // Advice: where it is not taken, nothing is lost but time.
            let _ = fadvise(file, begin, size, Advice::DontNeed);
        }
        self.forgotten = read;
    }

    /// Whether nothing will be added to the file; an error if it was deleted instead of moved.
    fn is_complete(&self, file: &File) -> io::Result<bool> {
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) if FileId::of(&metadata) == self.id => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if file.metadata()?.nlink() == 0 {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the blob was given up by its writer",
            ));
        }
        Ok(true)
    }

    /// Waits until the file may have changed, or `stop` is cancelled.
    fn wait(&mut self, stop: &CancellationToken) -> io::Result<()> {
        Handle::current().block_on(stop.run_until_cancelled(self.watch.changed())).unwrap_or(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    /// A blob under way in a store, and a reader that has read all that is there.
    struct Blob {
        dir: tempfile::TempDir,
        file: File,
        position: watch::Receiver<u64>,
        reading: JoinHandle<io::Result<(Vec<u8>, Digest, u64)>>,
        stop: CancellationToken,
    }

    impl Blob {
        async fn begin(begin: &[u8]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("ingest/blob")).unwrap();
            let path = dir.path().join("ingest/blob/data");
            let mut file = File::create(&path).unwrap();
            file.write_all(begin).unwrap();
            let opened = File::open(&path).unwrap();
            let id = FileId::of(&opened.metadata().unwrap());
            let watch = Watch::new(path.parent().unwrap()).unwrap();
            let stop = CancellationToken::new();
            let writing = Writing::new(path, id, watch);
            let mut reader = BlobReader::new(opened, writing, Hasher::sha256(), stop.clone());
            let position = reader.position();
            let reading = tokio::task::spawn_blocking(move || {
                let mut content = Vec::new();
                reader.read_to_end(&mut content)?;
                let (digest, size) = reader.content();
                Ok((content, digest, size))
            });
            let mut blob = Self { dir, file, position, reading, stop };
            blob.wait_for(begin.len()).await;
            blob
        }

        async fn wait_for(&mut self, size: usize) {
            let read = self.position.wait_for(|read| *read == size as u64);
            timeout(DEADLINE, read).await.unwrap().unwrap();
        }

        async fn end(self) -> io::Result<(Vec<u8>, Digest, u64)> {
            timeout(DEADLINE, self.reading).await.unwrap().unwrap()
        }
    }

    #[tokio::test]
    async fn a_blob_is_read_while_it_is_written_and_ends_when_it_is_moved() {
        let mut blob = Blob::begin(b"ab").await;
        blob.file.write_all(b"cd").unwrap();
        blob.wait_for(4).await;
        blob.file.write_all(b"ef").unwrap();
        fs::rename(blob.dir.path().join("ingest/blob/data"), blob.dir.path().join("complete")).unwrap();
        let (content, digest, size) = blob.end().await.unwrap();
        assert_eq!((content.as_slice(), size), (&b"abcdef"[..], 6));
        assert_eq!(digest, registry::digest::sha256(b"abcdef"));
    }

    #[tokio::test]
    async fn a_blob_that_is_given_up_is_never_complete() {
        let blob = Blob::begin(b"ab").await;
        fs::remove_dir_all(blob.dir.path().join("ingest/blob")).unwrap();
        assert_eq!(blob.end().await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn a_reader_that_waits_for_more_can_be_stopped() {
        let blob = Blob::begin(b"ab").await;
        blob.stop.cancel();
        assert_eq!(blob.end().await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
