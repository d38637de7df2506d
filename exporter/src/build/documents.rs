//! The JSON documents of an output: manifests, configs, and the statements of attestations, of which one may have many
//! megabytes. Large ones are kept on disk, in room that all builds share, and sent from there. Those that have to be changed are in
//! memory meanwhile, as many as fit into a bound of all builds, and never while a registry is waited for.

use std::collections::HashMap;
use std::io::{self, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use image::destination::{Destination, DiskShare, DiskSpace, StoreError};
use registry::digest::Digest;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::sync::{Semaphore, SemaphorePermit};

/// The most of one document that stays in memory: more than manifests and configs have.
const MEMORY_BYTES: usize = 64 << 10;

/// The most documents of one output. Each platform has some seven, with its attestations; each may be an open file.
const DOCUMENTS_LIMIT: usize = 1024;

/// The largest document taken: far more than what a large image's SBOM has.
const LIMIT_BYTES: u64 = 256 << 20;

/// Bytes of documents that are changed at once, over all builds; one that has more is changed alone. Each is in memory twice then.
const CHANGED_AT_ONCE_BYTES: u64 = 32 << 20;

/// Bytes of a document handed on at once.
const PIECE_BYTES: usize = 1 << 20;

/// Room in memory for documents that are changed.
#[derive(Debug)]
pub(crate) struct ChangeRoom(Semaphore);

impl Default for ChangeRoom {
    fn default() -> Self {
        Self(Semaphore::new(kib(CHANGED_AT_ONCE_BYTES) as usize))
    }
}

impl ChangeRoom {
    /// Waits for room for a document of `size` bytes, which is taken until what is returned is dropped.
    pub(crate) async fn take(&self, size: u64) -> SemaphorePermit<'_> {
        let wanted = kib(size.min(CHANGED_AT_ONCE_BYTES));
        self.0.acquire_many(wanted).await.expect("the semaphore is never closed")
    }
}

/// Begun KiB of so many bytes, of [`CHANGED_AT_ONCE_BYTES`] at most.
fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX)
}

/// Why a document is not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentsError {
    #[error("expected at most {LIMIT_BYTES} bytes, of an SBOM too")]
    TooLarge,
    #[error(
        "it is one more than the {DOCUMENTS_LIMIT} that an output may have: build for fewer platforms at once"
    )]
    TooMany,
    #[error(transparent)]
    NoRoom(Box<StoreError>),
    #[error(transparent)]
    NotStored(Box<StoreError>),
    #[error("it cannot be kept in {}, which is registry.upload.spool_dir: {error}", dir.display())]
    Spool { dir: PathBuf, error: io::Error },
}

/// A document that is coming, or has come.
#[derive(Debug)]
pub(crate) struct Document {
    memory: BytesMut,
    /// What does not stay in memory: an unnamed file. Closed before its room is given back.
    file: Option<File>,
    room: DiskShare,
    size: u64,
}

impl Document {
    /// An empty one; if it gets large, it is kept in an unnamed file in `space`.
    pub(crate) fn new(space: &Arc<DiskSpace>) -> Self {
        Self { memory: BytesMut::new(), file: None, room: DiskShare::of(space), size: 0 }
    }

    /// Adds what came.
    pub(crate) async fn write(&mut self, data: &[u8]) -> Result<(), DocumentsError> {
        self.size += data.len() as u64;
        if self.size > LIMIT_BYTES {
            return Err(DocumentsError::TooLarge);
        }
        // However much comes at once, no more of it is copied.
        for piece in data.chunks(PIECE_BYTES) {
            self.memory.extend_from_slice(piece);
            if self.memory.len() > MEMORY_BYTES {
                self.spill().await?;
            }
        }
        Ok(())
    }

    /// Puts what is in memory on the disk.
    async fn spill(&mut self) -> Result<(), DocumentsError> {
        let memory = self.memory.split();
        self.room.take(memory.len() as u64).map_err(|error| DocumentsError::NoRoom(Box::new(error)))?;
        let written = async {
            if self.file.is_none() {
                let dir = self.room.space().dir().to_owned();
                let file = tokio::task::spawn_blocking(move || tempfile::tempfile_in(dir)).await;
                self.file = Some(File::from_std(file.map_err(io::Error::other)??));
            }
            match &mut self.file {
                Some(file) => file.write_all(&memory).await,
                None => Ok(()),
            }
        };
        written.await.map_err(|error| self.unkept(error))
    }

    /// Its bytes so far.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// All of it.
    pub(crate) async fn content(&mut self) -> Result<Bytes, DocumentsError> {
        let Some(file) = &mut self.file else { return Ok(self.memory.clone().freeze()) };
        let mut content = Vec::with_capacity(usize::try_from(self.size).unwrap_or(0));
        let read = async {
            file.flush().await?;
            file.seek(SeekFrom::Start(0)).await?;
            file.read_to_end(&mut content).await
        };
        read.await.map_err(|error| self.unkept(error))?;
        content.extend_from_slice(&self.memory);
        Ok(content.into())
    }

    /// Has it stored at `destination` as the blob `digest`, which it has.
    pub(crate) async fn store(
        &mut self,
        digest: &Digest,
        destination: &dyn Destination,
    ) -> Result<(), DocumentsError> {
        let failed = |error| DocumentsError::NotStored(Box::new(error));
        if self.file.is_none() {
            // Small ones go as one piece.
            let content = self.memory.clone().freeze();
            return destination.put_blob(content).await.map(drop).map_err(failed);
        }
        if destination.has_blob(digest).await.map_err(failed)? {
            return Ok(());
        }
        let mut writer = destination.begin().await.map_err(failed)?;
        let mut sent = 0;
        while sent < self.size {
            let piece = match self.piece(sent).await {
                Ok(piece) => piece,
                Err(error) => {
                    writer.cancel().await;
                    return Err(self.unkept(error));
                }
            };
            sent += piece.len() as u64;
            writer.write(piece).await.map_err(failed)?;
        }
        writer.finish(digest).await.map(drop).map_err(failed)
    }

    /// Some of its bytes, from `at` on, which is where the piece before ended.
    async fn piece(&mut self, at: u64) -> io::Result<Bytes> {
        let in_file = self.size - self.memory.len() as u64;
        let Some(file) = self.file.as_mut().filter(|_| at < in_file) else {
            let begin = usize::try_from(at.saturating_sub(in_file)).unwrap_or(usize::MAX);
            return Ok(self.memory.clone().freeze().slice(begin..));
        };
        if at == 0 {
            file.flush().await?;
            file.seek(SeekFrom::Start(0)).await?;
        }
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        match file.read_buf(&mut piece).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(piece.freeze()),
        }
    }

    fn unkept(&self, error: io::Error) -> DocumentsError {
        DocumentsError::Spool { dir: self.room.space().dir().to_owned(), error }
    }
}

/// The documents that have come, by their digests.
#[derive(Debug, Default)]
pub(crate) struct Documents(Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<Document>>>>);

impl Documents {
    /// Keeps a document.
    pub(crate) fn insert(&self, digest: Digest, document: Document) -> Result<(), DocumentsError> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= DOCUMENTS_LIMIT && !all.contains_key(&digest) {
            return Err(DocumentsError::TooMany);
        }
        all.insert(digest, Arc::new(tokio::sync::Mutex::new(document)));
        Ok(())
    }

    /// A document, if it has come.
    pub(crate) fn find(&self, digest: &Digest) -> Option<Arc<tokio::sync::Mutex<Document>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    /// The content of a document, if it has come.
    pub(crate) async fn get(&self, digest: &Digest) -> Result<Option<Bytes>, DocumentsError> {
        match self.find(digest) {
            Some(document) => document.lock().await.content().await.map(Some),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use futures::FutureExt as _;
    use image::destination::{DiskUse, Shape, Staging};

    fn space(dir: &std::path::Path, bytes: u64) -> Arc<DiskSpace> {
        DiskSpace::new(
            dir,
            bytes,
            &DiskUse { what: "documents", setting: "document_bytes", of: "all builds", instead: "have none" },
        )
    }

    #[tokio::test]
    async fn a_document_of_any_size_comes_back_as_it_came() {
        let dir = tempfile::tempdir().unwrap();
        let space = space(dir.path(), 1 << 20);
        for size in [0, 10, MEMORY_BYTES, MEMORY_BYTES * 3 + 7] {
            let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let mut document = Document::new(&space);
            for part in content.chunks(30_000) {
                document.write(part).await.unwrap();
            }
            let documents = Documents::default();
            let digest = registry::digest::sha256(&content);
            documents.insert(digest.clone(), document).unwrap();
            for _ in 0..2 {
                assert!(documents.get(&digest).await.unwrap().unwrap() == content);
            }
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
        assert_eq!(space.left(), 1 << 20);
    }

    #[tokio::test]
    async fn a_document_of_any_size_is_stored_as_it_came() {
        let dir = tempfile::tempdir().unwrap();
        let space = space(dir.path(), 16 << 20);
        let layout = Arc::new(Staging::new(&dir.path().join("layout"), Shape::Oci { name: None }).unwrap());
        for size in [0, 10, MEMORY_BYTES, MEMORY_BYTES * 3 + 7, PIECE_BYTES * 2 + 7] {
            let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let mut document = Document::new(&space);
            for part in content.chunks(30_000) {
                document.write(part).await.unwrap();
            }
            let digest = registry::digest::sha256(&content);
            // It may be sent more than once, and read as well.
            for _ in 0..2 {
                document.store(&digest, &layout).await.unwrap();
                let mut pieces = Vec::new();
                while pieces.len() < size {
                    pieces.extend_from_slice(&document.piece(pieces.len() as u64).await.unwrap());
                }
                assert!(pieces == content && document.content().await.unwrap() == content, "{size}");
            }
            assert!(layout.has_blob(&digest).await.unwrap());
        }
    }

    #[tokio::test]
    async fn documents_of_all_builds_that_are_changed_at_once_are_bounded_and_one_alone_may_have_any_size() {
        let room = ChangeRoom::default();
        let third = CHANGED_AT_ONCE_BYTES / 3;
        let (one, two) = (room.take(third).await, room.take(third).await);
        assert!(room.take(CHANGED_AT_ONCE_BYTES / 2).now_or_never().is_none());
        drop(one);
        drop(room.take(CHANGED_AT_ONCE_BYTES / 2).await);
        assert!(room.take(LIMIT_BYTES).now_or_never().is_none());
        drop(two);
        let _whole = room.take(LIMIT_BYTES).await;
        assert!(room.take(1).now_or_never().is_none());
    }

    #[tokio::test]
    async fn documents_that_do_not_fit_or_are_too_many_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let space = space(dir.path(), 100_000);
        let [mut one, mut other] = [(); 2].map(|()| Document::new(&space));
        one.write(&[0; 70_000]).await.unwrap();
        let error = other.write(&[0; 70_000]).await.unwrap_err().to_string();
        assert!(error.contains("100000 bytes") && error.contains("raise document_bytes"), "{error}");
        drop(one);
        other.write(&[0; 70_000]).await.unwrap();
        let documents = Documents::default();
        for number in 0..DOCUMENTS_LIMIT {
            let digest = registry::digest::sha256(&number.to_be_bytes());
            documents.insert(digest, Document::new(&space)).unwrap();
        }
        let again = registry::digest::sha256(&0_usize.to_be_bytes());
        documents.insert(again, Document::new(&space)).unwrap();
        assert!(matches!(
            documents.insert(registry::digest::sha256(b"one more"), other),
            Err(DocumentsError::TooMany)
        ));
        assert_eq!(space.left(), 100_000);
    }
}
