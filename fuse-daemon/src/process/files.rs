//! Blobs' files, which the front opens for a worker that has no file system.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::libc;

use crate::control::BlobId;

/// Opens a blob's file in a directory; with its size in bytes.
pub(super) fn open(directory: &Path, blob: BlobId) -> io::Result<(OwnedFd, u64)> {
    let path = directory.join(blob.0.to_string());
    // Somebody may have put a named pipe there, which would be waited for.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    Ok((file.into(), metadata.len()))
}
