//! The JSON documents of an output: manifests, configs, and the statements of attestations, of which one may have many
//! megabytes. Large ones are kept on disk.

use std::collections::HashMap;
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use registry::digest::Digest;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

/// The most of one document that stays in memory.
const MEMORY_BYTES: usize = 1 << 20;

/// The largest document taken: far more than what a large image's SBOM has.
const LIMIT_BYTES: u64 = 256 << 20;

/// Why a document is not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentsError {
    #[error("it has more than {LIMIT_BYTES} bytes, which no document of an image has")]
    TooLarge,
    #[error("it cannot be kept in {}: {error}", dir.display())]
    Spool { dir: PathBuf, error: std::io::Error },
}

/// A document that is coming, or has come.
#[derive(Debug)]
pub(crate) struct Document {
    dir: PathBuf,
    memory: BytesMut,
    /// What does not stay in memory: an unnamed file.
    file: Option<File>,
    size: u64,
}

impl Document {
    /// An empty one; if it gets large, it is kept in an unnamed file in `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), memory: BytesMut::new(), file: None, size: 0 }
    }

    /// Adds what came.
    pub(crate) async fn write(&mut self, data: &[u8]) -> Result<(), DocumentsError> {
        self.size += data.len() as u64;
        if self.size > LIMIT_BYTES {
            return Err(DocumentsError::TooLarge);
        }
        self.memory.extend_from_slice(data);
        if self.memory.len() > MEMORY_BYTES {
            let (dir, memory) = (self.dir.clone(), self.memory.split());
            let written = async {
                if self.file.is_none() {
                    let dir = dir.clone();
                    let file = tokio::task::spawn_blocking(move || tempfile::tempfile_in(dir)).await;
                    self.file = Some(File::from_std(file.map_err(std::io::Error::other)??));
                }
                match &mut self.file {
                    Some(file) => file.write_all(&memory).await,
                    None => Ok(()),
                }
            };
            written.await.map_err(|error| DocumentsError::Spool { dir, error })?;
        }
        Ok(())
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
        read.await.map_err(|error| DocumentsError::Spool { dir: self.dir.clone(), error })?;
        content.extend_from_slice(&self.memory);
        Ok(content.into())
    }
}

/// The documents that have come, by their digests.
#[derive(Debug, Default)]
pub(crate) struct Documents(Mutex<HashMap<Digest, std::sync::Arc<tokio::sync::Mutex<Document>>>>);

impl Documents {
    /// Keeps a document.
    pub(crate) fn insert(&self, digest: Digest, document: Document) {
        let document = std::sync::Arc::new(tokio::sync::Mutex::new(document));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, document);
    }

    /// The content of a document, if it has come.
    pub(crate) async fn get(&self, digest: &Digest) -> Result<Option<Bytes>, DocumentsError> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned();
        match found {
            Some(document) => document.lock().await.content().await.map(Some),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_document_of_any_size_comes_back_as_it_came() {
        let dir = tempfile::tempdir().unwrap();
        for size in [0, 10, MEMORY_BYTES, MEMORY_BYTES * 3 + 7] {
            let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let mut document = Document::new(dir.path());
            for part in content.chunks(300_000) {
                document.write(part).await.unwrap();
            }
            let documents = Documents::default();
            let digest = registry::digest::sha256(&content);
            documents.insert(digest.clone(), document);
            for _ in 0..2 {
                assert!(documents.get(&digest).await.unwrap().unwrap() == content);
            }
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }
}
