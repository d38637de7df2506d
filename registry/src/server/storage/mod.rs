//! Content on disk, in the layout of CNCF distribution (see [`crate::layout`], which reads it), so that its `registry` can take
//! the folder over and give it back. All calls block; callers run them on blocking threads.

mod files;
mod manifests;
#[cfg(test)]
mod power_cut;
mod uploads;

use std::io;
use std::path::Path;
use std::sync::Arc;

pub(super) use files::create_root;
pub(super) use uploads::UploadFile;

use self::files::{Folders, SyncFolder, sync_folder};
use super::error::Failure;
use crate::digest::Digest;
use crate::layout::{Layout, LayoutError, Paths, present};

/// Content that is served. It is written only where it is a directory's.
#[derive(Clone)]
pub(super) struct Storage {
    /// All of it, to be read.
    pub(super) layout: Layout,
    folders: Arc<Folders>,
}

impl Storage {
    pub(super) fn new(layout: Layout) -> Self {
        Self::synced_by(layout, Box::new(sync_folder))
    }

    fn synced_by(layout: Layout, sync: SyncFolder) -> Self {
        let folders = Arc::new(Folders::new(layout.paths().root(), sync));
        Self { layout, folders }
    }

    fn paths(&self) -> &Paths {
        self.layout.paths()
    }

    /// Makes the content `content` the repository's blob `digest`. The two differ when the digest is not SHA-256.
    pub(super) fn link_blob(&self, name: &str, digest: &Digest, content: &Digest) -> Result<(), Failure> {
        self.folders.write(&self.paths().layer(name, digest), content.as_ref().as_bytes())
    }

    /// As [`Self::link_blob`], where the content is there: it may be of another request that is not answered yet.
    pub(super) fn mount_blob(&self, name: &str, digest: &Digest, content: &Digest) -> Result<(), Failure> {
        self.folders.keep(&self.paths().data(content))?;
        self.link_blob(name, digest, content)
    }

    /// Sees to it that the repository's blob, which is there, is found after a loss of power: it may be of another request that
    /// is not answered yet.
    pub(super) fn keep_blob(&self, name: &str, digest: &Digest) -> Result<(), Failure> {
        // Content is on the disk before a link to it is written.
        self.folders.keep(&self.paths().layer(name, digest))
    }

    /// As [`Self::keep_blob`], for a manifest.
    pub(super) fn keep_manifest(&self, name: &str, digest: &Digest) -> Result<(), Failure> {
        self.folders.keep(&self.paths().revision(name, digest))
    }

    /// Takes the blob from the repository; its content stays for other repositories. `false`: it was not there.
    pub(super) fn unlink_blob(&self, name: &str, digest: &Digest) -> Result<bool, Failure> {
        let path = self.paths().layer(name, digest);
        Ok(present(std::fs::remove_file(&path)).map_err(failed("removing", &path))?.is_some())
    }
}

impl From<LayoutError> for Failure {
    fn from(LayoutError { doing, path, error }: LayoutError) -> Self {
        Self::Storage { doing, path, source: error }
    }
}

/// Maps a failure of the file system to one that says what was being done to which file.
fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let path = path.to_owned();
    move |source| Failure::Storage { doing, path, source }
}
