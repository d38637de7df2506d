//! Content on disk, in the layout of CNCF distribution (see [`crate::layout`], which reads it), so that its `registry` can take
//! the folder over and give it back. All calls block; callers run them on blocking threads.

mod files;
mod manifests;
mod uploads;

use std::io;
use std::path::Path;

pub(super) use uploads::UploadFile;

use self::files::write_atomically;
use super::error::Failure;
use crate::digest::Digest;
use crate::layout::{Layout, LayoutError, Paths, present};

/// Content that is served. It is written only where it is a directory's.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    /// All of it, to be read.
    pub(super) layout: Layout,
}

impl Storage {
    pub(super) fn new(layout: Layout) -> Self {
        Self { layout }
    }

    fn paths(&self) -> &Paths {
        self.layout.paths()
    }

    /// Makes the content `content` the repository's blob `digest`. The two differ when the digest is not SHA-256.
    pub(super) fn link_blob(&self, name: &str, digest: &Digest, content: &Digest) -> Result<(), Failure> {
        let path = self.paths().layer(name, digest);
        write_atomically(&path, content.as_ref().as_bytes())
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
