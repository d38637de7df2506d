//! The file of a socket that is listened on.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::lock::Lock;

/// Removes the socket when dropped, and lets a successor have its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: somebody who takes no locks may have put another one there.
    identity: (u64, u64),
    /// Given up after the socket is removed.
    _lock: Lock,
}

impl SocketFile {
    pub(super) fn new(path: &Path, lock: Lock) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)?, _lock: lock })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = identity(&self.path).is_ok_and(|found| found == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the socket");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
