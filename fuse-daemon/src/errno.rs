//! The error number that a program sees for each failure.

use nix::errno::Errno;
use rafs::bootstrap::ReadError as BootstrapError;

use crate::fs::FsError;

/// The error number for a failure of the file system.
pub fn of(error: &FsError) -> Errno {
    match error {
        FsError::NoXattr => Errno::ENODATA,
        FsError::Bootstrap(BootstrapError::NotADirectory(_)) => Errno::ENOTDIR,
        FsError::Bootstrap(BootstrapError::NotAFile(_) | BootstrapError::NotASymlink(_)) => Errno::EINVAL,
        // Broken metadata and content that is not to be had alike: the program can do nothing about either.
        FsError::Bootstrap(_) | FsError::OutsideChunk { .. } | FsError::Unanswered(_) | FsError::Read(_) => {
            Errno::EIO
        }
    }
}
