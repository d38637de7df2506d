//! The files of a layout: of a directory, or members of a tar.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::LayoutError;

/// A file, or a part of one: where content lies on the disk.
#[derive(Clone, Debug)]
pub struct Part {
    /// The file.
    pub file: Arc<File>,
    /// Where the content starts in it, in bytes.
    pub offset: u64,
    /// The content's size in bytes.
    pub size: u64,
}

/// The files in a tar, by name, and where the content of each lies.
#[derive(Debug)]
pub struct Members {
    path: PathBuf,
    file: Arc<File>,
    /// Offset and size, in bytes.
    parts: BTreeMap<String, (u64, u64)>,
}

impl Members {
    /// The members of the tar `file`, which is at `path`: names (relative, without `.` and `..`), offsets and sizes in bytes.
    pub fn new(path: PathBuf, file: Arc<File>, parts: BTreeMap<String, (u64, u64)>) -> Self {
        Self { path, file, parts }
    }

    /// Where the member's content lies.
    pub fn part(&self, name: &str) -> Option<Part> {
        let &(offset, size) = self.parts.get(name)?;
        Some(Part { file: Arc::clone(&self.file), offset, size })
    }

    /// The names of all members, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.keys().map(String::as_str)
    }

    /// The names of the folders in the folder `path`.
    fn folders(&self, path: &str) -> Vec<String> {
        let prefix = format!("{path}/");
        let mut found = Vec::new();
        let mut from = prefix.clone();
        while let Some((name, _)) = self.parts.range(from.clone()..).next() {
            let Some(rest) = name.strip_prefix(&prefix) else { break };
            match rest.split_once('/') {
                Some((folder, _)) => {
                    found.push(folder.to_owned());
                    // Behind everything in this folder: `0` comes after `/`.
                    from = format!("{prefix}{folder}0");
                }
                None => from = format!("{name}\0"),
            }
        }
        found
    }

    fn has(&self, path: &str) -> bool {
        let within = format!("{path}/");
        self.parts.contains_key(path)
            || self.parts.range(within.clone()..).next().is_some_and(|(name, _)| name.starts_with(&within))
    }
}

/// Where files are.
#[derive(Clone, Debug)]
pub(super) enum Files {
    /// On the file system, by their whole paths.
    Directory,
    /// In a tar, by their names there.
    Archive(Arc<Members>),
}

impl Files {
    /// The file's content, `None` if it does not exist.
    pub(super) fn read(&self, path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>, LayoutError> {
        let Some(part) = self.open(path)? else { return Ok(None) };
        let failed = |error| self.failed("reading", path, error);
        if part.size > limit_bytes {
            let reason = format!("it has {} bytes: at most {limit_bytes} are read", part.size);
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, reason)));
        }
        let mut content = vec![0; part.size as usize];
        part.file.read_exact_at(&mut content, part.offset).map_err(failed)?;
        Ok(Some(content))
    }

    /// Opens the file, `None` if it does not exist.
    pub(super) fn open(&self, path: &Path) -> Result<Option<Part>, LayoutError> {
        match self {
            Self::Archive(members) => Ok(members.part(&name(path))),
            Self::Directory => {
                let failed = |error| self.failed("opening", path, error);
                let Some(file) = present(File::open(path)).map_err(failed)? else { return Ok(None) };
                let size = file.metadata().map_err(failed)?.len();
                Ok(Some(Part { file: Arc::new(file), offset: 0, size }))
            }
        }
    }

    /// Whether there is such a file or folder.
    pub(super) fn exists(&self, path: &Path) -> Result<bool, LayoutError> {
        match self {
            Self::Archive(members) => Ok(members.has(&name(path))),
            Self::Directory => path.try_exists().map_err(|error| self.failed("looking for", path, error)),
        }
    }

    /// The names of the folders in `path`, none if it does not exist.
    pub(super) fn folders(&self, path: &Path) -> Result<Vec<String>, LayoutError> {
        match self {
            Self::Archive(members) => Ok(members.folders(&name(path))),
            Self::Directory => folders(path),
        }
    }

    fn failed(&self, doing: &'static str, path: &Path, error: io::Error) -> LayoutError {
        let path = match self {
            Self::Archive(members) => members.path.join(path),
            Self::Directory => path.to_owned(),
        };
        LayoutError { doing, path, error }
    }
}

/// The name in a tar: paths of layouts are made of text.
fn name(path: &Path) -> String {
    path.to_string_lossy().trim_end_matches('/').to_owned()
}

/// `None` instead of the error that something does not exist.
pub(crate) fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The names of the folders in `path`, none if it does not exist.
pub(crate) fn folders(path: &Path) -> Result<Vec<String>, LayoutError> {
    let failed = |error| LayoutError { doing: "listing", path: path.to_owned(), error };
    let Some(entries) = present(fs::read_dir(path)).map_err(failed)? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let folder = entry.file_type().map_err(failed)?.is_dir();
        if folder && let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}
