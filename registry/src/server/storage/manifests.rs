//! Manifests, the tags that name them, and what refers to what.

use std::fs;

use super::files::{folders, present, write_atomically};
use super::{Storage, failed};
use crate::digest::{self, Digest, DigestAlgorithm};
use crate::server::error::Failure;

/// A manifest as it was pushed.
pub(in crate::server) struct StoredManifest {
    pub(in crate::server) digest: Digest,
    pub(in crate::server) content: Vec<u8>,
}

impl Storage {
    /// What `tag` names.
    pub(in crate::server) fn tagged(&self, name: &str, tag: &str) -> Result<Option<Digest>, Failure> {
        self.linked(&self.paths.tag_current(name, tag))
    }

    /// The repository's manifest `digest`.
    pub(in crate::server) fn manifest(
        &self,
        name: &str,
        digest: &Digest,
    ) -> Result<Option<StoredManifest>, Failure> {
        let Some(content) = self.linked(&self.paths.revision(name, digest))? else { return Ok(None) };
        let path = self.paths.data(&content);
        let content = present(fs::read(&path)).map_err(failed("reading", &path))?;
        Ok(content.map(|content| StoredManifest { digest: digest.clone(), content }))
    }

    pub(in crate::server) fn has_manifest(&self, name: &str, digest: &Digest) -> Result<bool, Failure> {
        match self.linked(&self.paths.revision(name, digest))? {
            Some(content) => self.has_data(&content),
            None => Ok(false),
        }
    }

    /// Stores `content` as the repository's manifest `digest`, and has `tag` name it.
    pub(in crate::server) fn put_manifest(
        &self,
        name: &str,
        tag: Option<&str>,
        digest: &Digest,
        content: &[u8],
    ) -> Result<(), Failure> {
        let canonical = match digest.algorithm() {
            DigestAlgorithm::Sha256 => digest.clone(),
            _ => digest::sha256(content),
        };
        let path = self.paths.data(&canonical);
        if !path.try_exists().map_err(failed("looking for", &path))? {
            write_atomically(&path, content)?;
        }
        let link = canonical.as_ref().as_bytes();
        // Content before links, the tag last: whoever finds one finds what it leads to.
        write_atomically(&self.paths.revision(name, digest), link)?;
        if let Some(tag) = tag {
            let link = digest.as_ref().as_bytes();
            write_atomically(&self.paths.tag_index(name, tag, digest), link)?;
            write_atomically(&self.paths.tag_current(name, tag), link)?;
        }
        Ok(())
    }

    /// Removes the manifest and the tags that name it. `false`: it was not there.
    pub(in crate::server) fn delete_manifest(&self, name: &str, digest: &Digest) -> Result<bool, Failure> {
        let path = self.paths.revision(name, digest);
        if self.linked(&path)?.is_none() {
            return Ok(false);
        }
        for tag in self.tags(name)? {
            if self.tagged(name, &tag)?.as_ref() == Some(digest) {
                self.delete_tag(name, &tag)?;
            }
        }
        fs::remove_file(&path).map_err(failed("removing", &path))?;
        Ok(true)
    }

    /// Removes the tag, not what it names. `false`: it was not there.
    pub(in crate::server) fn delete_tag(&self, name: &str, tag: &str) -> Result<bool, Failure> {
        let path = self.paths.tag(name, tag);
        Ok(present(fs::remove_dir_all(&path)).map_err(failed("removing", &path))?.is_some())
    }

    /// The repository's tags, sorted.
    pub(in crate::server) fn tags(&self, name: &str) -> Result<Vec<String>, Failure> {
        let mut tags = Vec::new();
        for tag in folders(&self.paths.tags(name))? {
            // A tag is there once it names something: its folder comes before that.
            if self.tagged(name, &tag)?.is_some() {
                tags.push(tag);
            }
        }
        tags.sort_unstable();
        Ok(tags)
    }

    /// The digests of all of the repository's manifests.
    pub(in crate::server) fn revisions(&self, name: &str) -> Result<Vec<Digest>, Failure> {
        let path = self.paths.revisions(name);
        let mut digests = Vec::new();
        for algorithm in folders(&path)? {
            for hex in folders(&path.join(&algorithm))? {
                // Anything else there is not ours to judge.
                let Ok(digest) = format!("{algorithm}:{hex}").parse::<Digest>() else { continue };
                if self.has_manifest(name, &digest)? {
                    digests.push(digest);
                }
            }
        }
        Ok(digests)
    }
}
