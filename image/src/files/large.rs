//! Files that may be large: they are written as they come.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use super::FilesError;

/// The files that are wanted, and what of them is there.
pub(super) struct Large {
    /// By their paths from the root, without a slash before.
    paths: BTreeSet<Vec<u8>>,
    /// The directory that they are written to, which has nothing else.
    to: PathBuf,
    /// How many bytes they may have together.
    limit: u64,
    /// Those that are there, with their sizes.
    there: BTreeMap<Vec<u8>, u64>,
}

impl Large {
    pub(super) fn new(paths: BTreeSet<Vec<u8>>, to: PathBuf, limit: u64) -> Self {
        Self { paths, to, limit, there: BTreeMap::new() }
    }

    pub(super) fn wants(&self, path: &[u8]) -> bool {
        self.paths.contains(path)
    }

    pub(super) fn paths(&self) -> Vec<Vec<u8>> {
        self.paths.iter().cloned().collect()
    }

    /// Begins a file of so many bytes, in place of what is there.
    pub(super) fn begin(&mut self, path: &[u8], size: u64) -> Result<Writing, FilesError> {
        self.remove(|other| other == path)?;
        let bytes = self.there.values().sum::<u64>();
        if size > self.limit.saturating_sub(bytes) {
            return Err(FilesError::TooMuch { what: "bytes", limit: self.limit });
        }
        let file = self.place(path);
        let failed = |error| FilesError::Io { path: file.clone(), error };
        fs::create_dir_all(file.parent().unwrap_or(&self.to)).map_err(failed)?;
        let opened = File::create_new(&file).map_err(failed)?;
        self.there.insert(path.to_vec(), size);
        Ok(Writing { file: opened, path: file, left: size })
    }

    /// Removes those that are there and fit.
    pub(super) fn remove(&mut self, fits: impl Fn(&Vec<u8>) -> bool) -> Result<(), FilesError> {
        let fitting: Vec<Vec<u8>> = self.there.keys().filter(|path| fits(path)).cloned().collect();
        for path in fitting {
            let file = self.place(&path);
            fs::remove_file(&file).map_err(|error| FilesError::Io { path: file, error })?;
            self.there.remove(&path);
        }
        Ok(())
    }

    fn place(&self, path: &[u8]) -> PathBuf {
        self.to.join(OsStr::from_bytes(path))
    }
}

/// A file on its way to the disk.
pub(super) struct Writing {
    file: File,
    path: PathBuf,
    left: u64,
}

impl Writing {
    /// Writes what comes next, up to the file's size.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), FilesError> {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        self.left -= length as u64;
        let written = self.file.write_all(&bytes[..length]);
        written.map_err(|error| FilesError::Io { path: self.path.clone(), error })
    }
}
