//! Content in the storage layout of CNCF distribution (see [`Paths`]), read from a directory or from a tar. The
//! [server](crate::server) serves it, and writes it where it is a directory. All calls block on the disk.
//!
//! Names of repositories are those of a [`crate::Repository`], and tags those of a [`crate::Reference`]: such are safe in paths.

mod files;
mod paths;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

pub use self::files::{Members, Part};
pub(crate) use self::files::{folders, present};
pub use self::paths::Paths;

use self::files::Files;
use crate::client::MANIFEST_LIMIT_BYTES;
use crate::digest::{Digest, DigestAlgorithm};
use crate::reference::is_name;

/// A link holds a digest: this is many times one.
const LINK_LIMIT_BYTES: u64 = 4 << 10;

/// Why stored content cannot be read.
#[derive(Debug, Error)]
#[error("{doing} {}: {error}", path.display())]
pub struct LayoutError {
    /// What was being done.
    pub doing: &'static str,
    /// To which file or folder.
    pub path: PathBuf,
    /// Why it failed.
    pub error: io::Error,
}

/// Stored content.
#[derive(Clone, Debug)]
pub struct Layout {
    files: Files,
    paths: Paths,
}

impl Layout {
    /// The content of the directory `root`, which holds `docker/registry/v2`.
    pub fn directory(root: &Path) -> Self {
        Self { files: Files::Directory, paths: Paths::new(root) }
    }

    /// The content of a tar, in which `root` (empty: the tar itself) holds `docker/registry/v2`.
    pub fn archive(members: Arc<Members>, root: &str) -> Self {
        Self { files: Files::Archive(members), paths: Paths::new(Path::new(root)) }
    }

    /// Where is what.
    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The names of all repositories, sorted.
    pub fn repositories(&self) -> Result<Vec<String>, LayoutError> {
        self.repositories_after("", usize::MAX)
    }

    /// The names of the first `limit` repositories whose names sort after `last`, sorted. Only folders on the way there are read, and those
    /// of the repositories themselves.
    pub fn repositories_after(&self, last: &str, limit: usize) -> Result<Vec<String>, LayoutError> {
        let mut found = Vec::new();
        // Names that may be repositories; behind a slash, folders whose folders are still to be read. What is in a folder sorts after it,
        // and so nothing comes before what was the first here. Names hold no symlinks, so this ends.
        let mut next = BinaryHeap::from([Reverse(String::new())]);
        while found.len() < limit
            && let Some(Reverse(name)) = next.pop()
        {
            if !name.is_empty() && !name.ends_with('/') {
                // Anything else there is not ours to judge.
                if is_name(&name) && self.has_repository(&name)? {
                    found.push(name);
                }
                continue;
            }
            for folder in self.files.folders(&self.paths.repositories().join(name.trim_end_matches('/')))? {
                if folder.starts_with('_') {
                    continue;
                }
                let (folder, within) = (format!("{name}{folder}"), format!("{name}{folder}/"));
                if last.starts_with(&within) || within.as_str() > last {
                    next.push(Reverse(within));
                }
                if folder.as_str() > last {
                    next.push(Reverse(folder));
                }
            }
        }
        Ok(found)
    }

    /// Whether the repository exists: something was pushed to it.
    pub fn has_repository(&self, name: &str) -> Result<bool, LayoutError> {
        let path = self.paths.repository(name);
        for part in ["_manifests", "_layers"] {
            if self.files.exists(&path.join(part))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The repository's tags, sorted.
    pub fn tags(&self, name: &str) -> Result<Vec<String>, LayoutError> {
        let mut tags = Vec::new();
        for tag in self.files.folders(&self.paths.tags(name))? {
            // A tag is there once it names something: its folder comes before that.
            if self.tagged(name, &tag)?.is_some() {
                tags.push(tag);
            }
        }
        tags.sort_unstable();
        Ok(tags)
    }

    /// What `tag` names.
    pub fn tagged(&self, name: &str, tag: &str) -> Result<Option<Digest>, LayoutError> {
        self.linked(&self.paths.tag_current(name, tag))
    }

    /// The repository's manifest `digest`, as it was pushed.
    pub fn manifest(&self, name: &str, digest: &Digest) -> Result<Option<Vec<u8>>, LayoutError> {
        let Some(content) = self.linked(&self.paths.revision(name, digest))? else { return Ok(None) };
        self.files.read(&self.paths.data(&content), MANIFEST_LIMIT_BYTES as u64)
    }

    /// Whether the repository has the manifest.
    pub fn has_manifest(&self, name: &str, digest: &Digest) -> Result<bool, LayoutError> {
        match self.linked(&self.paths.revision(name, digest))? {
            Some(content) => self.has_data(&content),
            None => Ok(false),
        }
    }

    /// The digests of all of the repository's manifests.
    pub fn revisions(&self, name: &str) -> Result<Vec<Digest>, LayoutError> {
        let path = self.paths.revisions(name);
        let mut digests = Vec::new();
        for algorithm in self.files.folders(&path)? {
            for hex in self.files.folders(&path.join(&algorithm))? {
                // Anything else there is not ours to judge.
                let Ok(digest) = format!("{algorithm}:{hex}").parse::<Digest>() else { continue };
                if self.has_manifest(name, &digest)? {
                    digests.push(digest);
                }
            }
        }
        Ok(digests)
    }

    /// The repository's blob `digest`.
    pub fn blob(&self, name: &str, digest: &Digest) -> Result<Option<Part>, LayoutError> {
        let Some(content) = self.linked(&self.paths.layer(name, digest))? else { return Ok(None) };
        self.data(&content)
    }

    /// The digest under which the content of the repository's blob `digest` is stored: its SHA-256.
    pub(crate) fn content_of(&self, name: &str, digest: &Digest) -> Result<Option<Digest>, LayoutError> {
        match self.linked(&self.paths.layer(name, digest))? {
            Some(content) if self.has_data(&content)? => Ok(Some(content)),
            _ => Ok(None),
        }
    }

    /// The content with this digest, of whatever repository.
    pub fn data(&self, digest: &Digest) -> Result<Option<Part>, LayoutError> {
        self.files.open(&self.paths.data(digest))
    }

    /// Whether any repository's content has this digest.
    pub fn has_data(&self, digest: &Digest) -> Result<bool, LayoutError> {
        self.files.exists(&self.paths.data(digest))
    }

    /// What the link at `path` stands for, `None` if there is no link.
    pub(crate) fn linked(&self, path: &Path) -> Result<Option<Digest>, LayoutError> {
        let Some(content) = self.files.read(path, LINK_LIMIT_BYTES)? else { return Ok(None) };
        let failed = |reason: String| LayoutError {
            doing: "reading link",
            path: path.to_owned(),
            error: io::Error::new(io::ErrorKind::InvalidData, reason),
        };
        let text = String::from_utf8_lossy(&content);
        checked_digest(text.trim()).map(Some).map_err(failed)
    }
}

/// A digest that can be computed, and so is of letters and digits of a known number.
pub(crate) fn checked_digest(text: &str) -> Result<Digest, String> {
    let digest = text.parse::<Digest>().map_err(|error| format!("{text}: {error}"))?;
    match digest.algorithm() {
        DigestAlgorithm::Sha256 | DigestAlgorithm::Sha512 => Ok(digest),
        _ => Err(format!("{text}: expected sha256 or sha512")),
    }
}

#[cfg(test)]
mod tests;
