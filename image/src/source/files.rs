//! The files of a layout: in a directory, or in an archive.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::archive::Archive;
use super::error::SourceError;
use registry::client::{Descriptor, MANIFEST_LIMIT_BYTES};
use registry::digest::{Digest, Hasher};

/// Where a layout's files are. Everything here blocks on the disk.
#[derive(Clone, Debug)]
pub(super) enum Files {
    /// Under a directory.
    Directory(PathBuf),
    /// In a tar.
    Archive(Arc<Archive>),
}

/// A file of a layout, or of an archive: a part of a file on disk.
#[derive(Clone, Debug)]
pub struct Part {
    /// What it is, for messages.
    pub(super) place: String,
    pub(super) file: Arc<File>,
    /// Where it starts, in bytes.
    pub(super) offset: u64,
    /// Its size in bytes.
    pub(super) size: u64,
}

impl Files {
    /// The file `name`, a relative path without `..`.
    pub(super) fn part(&self, name: &str) -> Result<Part, SourceError> {
        match self {
            Self::Archive(archive) => archive.part(name),
            Self::Directory(directory) => {
                let path = directory.join(name);
                let place = path.display().to_string();
                // Opening a pipe would wait for its other end.
                let metadata = path.metadata().map_err(SourceError::io(place.clone()))?;
                if !metadata.is_file() {
                    return Err(SourceError::document(place, "expected a regular file"));
                }
                let file = File::open(&path).map_err(SourceError::io(place.clone()))?;
                let size = file.metadata().map_err(SourceError::io(place.clone()))?.len();
                Ok(Part { place, file: Arc::new(file), offset: 0, size })
            }
        }
    }

    /// The content of the JSON document `name`.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        self.part(name)?.document()
    }
}

impl Part {
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bytes of a range. Not verified. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// When the range goes beyond it, or the disk fails.
    pub fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        // Before memory is taken for it.
        if range.start > range.end || range.end > self.size {
            let problem =
                format!("{}: it has {} bytes; expected at least {}", self.place, self.size, range.end);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, problem));
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.file.read_exact_at(&mut bytes, self.offset + range.start)?;
        Ok(bytes)
    }

    /// All of it, if it is no larger than a document may be.
    pub(super) fn document(&self) -> Result<Vec<u8>, SourceError> {
        let limit = MANIFEST_LIMIT_BYTES as u64;
        if self.size > limit {
            return Err(SourceError::TooLarge { place: self.place.clone(), size: self.size, limit });
        }
        let mut content = vec![0; self.size as usize];
        self.file.read_exact_at(&mut content, self.offset).map_err(SourceError::io(self.place.clone()))?;
        Ok(content)
    }

    /// Whether it has the size that `descriptor` says.
    pub(super) fn check_size(&self, descriptor: &Descriptor) -> Result<(), SourceError> {
        if self.size == descriptor.size() {
            return Ok(());
        }
        Err(SourceError::Size { place: self.place.clone(), expected: descriptor.size(), found: self.size })
    }

    /// The document that `descriptor` names, verified.
    pub(super) fn verified(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        self.check_size(descriptor)?;
        let content = self.document()?;
        verify(&content, descriptor.digest(), || self.place.clone())?;
        Ok(content)
    }

    /// What it begins with: up to `buffer`'s size.
    pub(super) fn begin(&self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        let length = buffer.len().min(usize::try_from(self.size).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..length], self.offset);
        read.map_err(SourceError::io(self.place.clone()))
    }
}

/// Whether the content of `place` has the digest.
pub(super) fn verify(
    content: &[u8],
    expected: &Digest,
    place: impl FnOnce() -> String,
) -> Result<(), SourceError> {
    let mut hasher = Hasher::like(expected)?;
    hasher.update(content);
    let found = hasher.finish();
    if found == *expected {
        return Ok(());
    }
    Err(SourceError::Digest { place: place(), expected: expected.clone(), found })
}

/// A part, read from its beginning to its end.
pub(super) struct PartReader {
    part: Part,
    position: u64,
}

impl PartReader {
    pub(super) fn new(part: Part) -> Self {
        Self { part, position: 0 }
    }
}

impl std::io::Read for PartReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.part.size - self.position).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let read = self.part.file.read_at(&mut buffer[..length], self.part.offset + self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}
