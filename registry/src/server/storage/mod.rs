//! Content on disk, in the layout of CNCF distribution (see [`paths`]), so that its `registry` can take the
//! folder over and give it back. All calls block; callers run them on blocking threads.

mod files;
mod manifests;
pub(super) mod paths;
mod uploads;

use std::fs::File;
use std::io;
use std::path::Path;

pub(super) use manifests::StoredManifest;
pub(super) use uploads::UploadFile;

use self::files::{present, write_atomically};
use self::paths::Paths;
use super::error::Failure;
use crate::digest::Digest;

/// The content below a root folder.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    paths: Paths,
}

/// A blob that is open for reading.
pub(super) struct OpenBlob {
    pub(super) file: File,
    pub(super) size: u64,
}

impl Storage {
    pub(super) fn new(root: &Path) -> Self {
        Self { paths: Paths::new(root) }
    }

    /// The repository's blob `digest`.
    pub(super) fn open_blob(&self, name: &str, digest: &Digest) -> Result<Option<OpenBlob>, Failure> {
        let Some(content) = self.linked(&self.paths.layer(name, digest))? else { return Ok(None) };
        self.open_data(&content)
    }

    /// Whether the repository has the blob.
    pub(super) fn has_blob(&self, name: &str, digest: &Digest) -> Result<bool, Failure> {
        Ok(self.content_of(name, digest)?.is_some())
    }

    /// The digest under which the content of the repository's blob `digest` is stored: its SHA-256.
    pub(super) fn content_of(&self, name: &str, digest: &Digest) -> Result<Option<Digest>, Failure> {
        match self.linked(&self.paths.layer(name, digest))? {
            Some(content) if self.has_data(&content)? => Ok(Some(content)),
            _ => Ok(None),
        }
    }

    /// Whether any repository's content has this digest.
    pub(super) fn has_data(&self, digest: &Digest) -> Result<bool, Failure> {
        let path = self.paths.data(digest);
        path.try_exists().map_err(failed("looking for", &path))
    }

    /// What the link at `path` stands for, `None` if there is no link.
    fn linked(&self, path: &Path) -> Result<Option<Digest>, Failure> {
        let Some(text) = present(std::fs::read_to_string(path)).map_err(failed("reading link", path))? else {
            return Ok(None);
        };
        let digest = super::routes::checked_digest(text.trim());
        digest.map(Some).map_err(|failure| Failure::Storage {
            doing: "reading link",
            path: path.to_owned(),
            source: io::Error::new(io::ErrorKind::InvalidData, failure.to_string()),
        })
    }

    fn open_data(&self, digest: &Digest) -> Result<Option<OpenBlob>, Failure> {
        let path = self.paths.data(digest);
        let Some(file) = present(File::open(&path)).map_err(failed("opening", &path))? else {
            return Ok(None);
        };
        let size = file.metadata().map_err(failed("reading the size of", &path))?.len();
        Ok(Some(OpenBlob { file, size }))
    }

    /// Makes the content `content` the repository's blob `digest`. The two differ when the digest is not SHA-256.
    pub(super) fn link_blob(&self, name: &str, digest: &Digest, content: &Digest) -> Result<(), Failure> {
        let path = self.paths.layer(name, digest);
        write_atomically(&path, content.as_ref().as_bytes())
    }

    /// Takes the blob from the repository; its content stays for other repositories. `false`: it was not there.
    pub(super) fn unlink_blob(&self, name: &str, digest: &Digest) -> Result<bool, Failure> {
        let path = self.paths.layer(name, digest);
        Ok(present(std::fs::remove_file(&path)).map_err(failed("removing", &path))?.is_some())
    }

    /// Whether the repository exists: something was pushed to it.
    pub(super) fn has_repository(&self, name: &str) -> Result<bool, Failure> {
        let path = self.paths.repository(name);
        for part in ["_manifests", "_layers"] {
            let path = path.join(part);
            if path.try_exists().map_err(failed("looking for", &path))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The names of all repositories, sorted.
    pub(super) fn repositories(&self) -> Result<Vec<String>, Failure> {
        let mut found = Vec::new();
        // Folders still to look into; names hold no symlinks, so this ends.
        let mut folders = vec![String::new()];
        while let Some(parent) = folders.pop() {
            for entry in self::files::folders(&self.paths.repositories().join(&parent))? {
                if entry == "_layers" || entry == "_manifests" {
                    found.push(parent.clone());
                } else if !entry.starts_with('_') {
                    folders.push(if parent.is_empty() { entry } else { format!("{parent}/{entry}") });
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

/// Maps a failure of the file system to one that says what was being done to which file.
fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let path = path.to_owned();
    move |source| Failure::Storage { doing, path, source }
}
