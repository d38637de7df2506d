//! Manifests, and the tags that name them.

use std::fs;

use super::{Storage, failed};
use crate::digest::{self, Digest, DigestAlgorithm};
use crate::layout::present;
use crate::server::error::Failure;

impl Storage {
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
        let path = self.paths().data(&canonical);
        match path.try_exists().map_err(failed("looking for", &path))? {
            true => self.folders.keep(&path)?,
            false => self.folders.write(&path, content)?,
        }
        let link = canonical.as_ref().as_bytes();
        // Content before links, the tag last: whoever finds one finds what it leads to.
        self.folders.write(&self.paths().revision(name, digest), link)?;
        if let Some(tag) = tag {
            let link = digest.as_ref().as_bytes();
            self.folders.write(&self.paths().tag_index(name, tag, digest), link)?;
            self.folders.write(&self.paths().tag_current(name, tag), link)?;
        }
        Ok(())
    }

    /// Removes the manifest and the tags that name it. `false`: it was not there.
    pub(in crate::server) fn delete_manifest(&self, name: &str, digest: &Digest) -> Result<bool, Failure> {
        let path = self.paths().revision(name, digest);
        if self.layout.linked(&path)?.is_none() {
            return Ok(false);
        }
        for tag in self.layout.tags(name)? {
            if self.layout.tagged(name, &tag)?.as_ref() == Some(digest) {
                self.delete_tag(name, &tag)?;
            }
        }
        fs::remove_file(&path).map_err(failed("removing", &path))?;
        Ok(true)
    }

    /// Removes the tag, not what it names. `false`: it was not there.
    pub(in crate::server) fn delete_tag(&self, name: &str, tag: &str) -> Result<bool, Failure> {
        let path = self.paths().tag(name, tag);
        Ok(present(fs::remove_dir_all(&path)).map_err(failed("removing", &path))?.is_some())
    }
}
