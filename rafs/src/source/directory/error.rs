//! What can go wrong while a directory is walked.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// A directory that cannot be read, or that changes meanwhile.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// A system call failed.
    #[error("cannot {action} {path:?}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file is not as it was a moment ago.
    #[error("{path:?} {how}: a directory must not change while an image is built from it")]
    Changed {
        /// Which file.
        path: PathBuf,
        /// What happened to it.
        how: &'static str,
    },
}

/// An error before the path is added to it.
pub(super) enum VisitFailure {
    Io { action: &'static str, source: io::Error },
    Changed(&'static str),
}

impl VisitFailure {
    /// What failed to be done to the current file. That it is not there any more is a change: it was listed.
    pub(super) fn io(action: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| match errno {
            Errno::NOENT => Self::Changed("vanished while being read"),
            Errno::LOOP | Errno::NOTDIR => Self::Changed("was replaced while being read"),
            _ => Self::Io { action, source: errno.into() },
        }
    }

    pub(super) fn at(self, root: &Path, path: &[u8]) -> DirectoryError {
        let path = root.join(OsStr::from_bytes(path));
        match self {
            Self::Io { action, source } => DirectoryError::Io { action, path, source },
            Self::Changed(how) => DirectoryError::Changed { path, how },
        }
    }
}
