//! Who holds the lock of a socket lives, and serves it or is about to.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// A locked file next to the socket. Dropped, it is removed; killed, its holder leaves it behind, unlocked.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    file: Flock<File>,
}

impl Lock {
    /// Takes the lock of the socket at `path`; `None` if somebody has it.
    pub(super) fn take(socket: &Path) -> io::Result<Option<Self>> {
        let mut path = OsString::from(socket);
        path.push(".lock");
        let path = PathBuf::from(path);
        loop {
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC)
                .open(&path)?;
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => Self { path: path.clone(), file },
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, errno)) => return Err(errno.into()),
            };
            // Its last holder may have removed it after it was opened here; the next one would lock another file.
            if lock.is_in_place()? {
                return Ok(Some(lock));
            }
        }
    }

    fn is_in_place(&self) -> io::Result<bool> {
        let ours = self.file.metadata()?;
        match std::fs::symlink_metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is locked, so that nobody locks a file that is about to go without noticing.
        if self.is_in_place().unwrap_or(false) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
