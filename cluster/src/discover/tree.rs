//! The files of a tree, and nothing beyond it: a symbolic link means what it would mean with the tree as the root directory.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use thiserror::Error;

/// The most that is read of one file: lists, manifests and values are far smaller.
const FILE_LIMIT_BYTES: u64 = 16 << 20;

/// The most that is read of a chart's archive.
const ARCHIVE_LIMIT_BYTES: u64 = 64 << 20;

/// How deep folders may lie in folders.
const DEPTH_LIMIT: usize = 64;

/// How many files are looked at.
const ENTRIES_LIMIT: usize = 1_000_000;

/// A file of the tree that cannot be read.
#[derive(Debug, Error)]
#[error("{}: {reason}", path.display())]
pub struct TreeError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: Unreadable,
}

/// Why a file cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Unreadable {
    /// The system refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is larger than such a file is.
    #[error("it has {size} bytes: at most {limit} are read")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// The most that is read, in bytes.
        limit: u64,
    },
    /// It is no text.
    #[error("it is no text in UTF-8: byte {0} is not")]
    NoText(usize),
    /// It is no regular file.
    #[error("it is no regular file")]
    NoFile,
    /// There is no end to it.
    #[error("more than {limit} {what}")]
    Endless {
        /// What there is so much of.
        what: &'static str,
        /// The most that is looked at.
        limit: usize,
    },
}

/// A directory of which everything is read as if it were the root.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    path: PathBuf,
}

/// What a folder holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PathEntry {
    pub(crate) path: PathBuf,
    pub(crate) is_dir: bool,
}

impl Tree {
    pub(crate) fn open(path: &Path) -> Result<Self, TreeError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| TreeError { path: path.to_owned(), reason: io::Error::from(error).into() })?;
        Ok(Self { root, path: path.to_owned() })
    }

    pub(crate) fn exists(&self, path: &Path) -> bool {
        self.descriptor(path, OFlags::PATH).is_ok()
    }

    pub(crate) fn is_dir(&self, path: &Path) -> bool {
        self.descriptor(path, OFlags::PATH | OFlags::DIRECTORY).is_ok()
    }

    /// The content of a small file.
    pub(crate) fn read(&self, path: &Path) -> Result<Vec<u8>, TreeError> {
        self.read_up_to(path, FILE_LIMIT_BYTES)
    }

    /// The content of an archive.
    pub(crate) fn read_archive(&self, path: &Path) -> Result<Vec<u8>, TreeError> {
        self.read_up_to(path, ARCHIVE_LIMIT_BYTES)
    }

    /// The content of a text, without the mark that some editors put before it.
    pub(crate) fn text(&self, path: &Path) -> Result<String, TreeError> {
        let text = String::from_utf8(self.read(path)?)
            .map_err(|error| self.unreadable(path, Unreadable::NoText(error.utf8_error().valid_up_to())))?;
        Ok(text.strip_prefix('\u{feff}').map_or_else(|| text.clone(), str::to_owned))
    }

    /// What the folder `path` holds, by name; symbolic links as what they lead to. Links to nowhere are left out.
    pub(crate) fn list(&self, path: &Path) -> Result<Vec<PathEntry>, TreeError> {
        let failed = |error: rustix::io::Errno| self.failed(path, error);
        let folder = self.descriptor(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
        let mut entries = Vec::new();
        for entry in Dir::read_from(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
            if name == "." || name == ".." {
                continue;
            }
            if entries.len() == ENTRIES_LIMIT {
                return Err(self.endless(path, "files in a folder", ENTRIES_LIMIT));
            }
            let path = path.join(name);
            let is_dir = match entry.file_type() {
                FileType::RegularFile => false,
                FileType::Directory => true,
                FileType::Symlink | FileType::Unknown if self.exists(&path) => self.is_dir(&path),
                _ => continue,
            };
            entries.push(PathEntry { path, is_dir });
        }
        entries.sort();
        Ok(entries)
    }

    /// Goes through `path` and all in it, folders before what they hold. `enter` says of each entry whether to go into it;
    /// nobody is led in circles by links.
    pub(crate) fn walk(
        &self,
        path: &Path,
        enter: &mut dyn FnMut(&PathEntry) -> bool,
    ) -> Result<(), TreeError> {
        let mut seen = HashSet::new();
        let mut entries = 0;
        let mut todo = vec![(path.to_owned(), 0)];
        while let Some((path, depth)) = todo.pop() {
            if depth > DEPTH_LIMIT {
                return Err(self.endless(&path, "folders in each other", DEPTH_LIMIT));
            }
            let folder = self.descriptor(&path, OFlags::PATH | OFlags::DIRECTORY);
            let identity =
                folder.and_then(|folder| fstat(&folder)).map_err(|error| self.failed(&path, error))?;
            if !seen.insert((identity.st_dev, identity.st_ino)) {
                continue;
            }
            let before = todo.len();
            for entry in self.list(&path)? {
                entries += 1;
                if entries > ENTRIES_LIMIT {
                    return Err(self.endless(&path, "files", ENTRIES_LIMIT));
                }
                if enter(&entry) && entry.is_dir {
                    todo.push((entry.path, depth + 1));
                }
            }
            todo[before..].reverse();
        }
        Ok(())
    }

    fn read_up_to(&self, path: &Path, limit: u64) -> Result<Vec<u8>, TreeError> {
        // A named pipe must not be waited for.
        let file = self
            .descriptor(path, OFlags::RDONLY | OFlags::NONBLOCK)
            .map_err(|error| self.failed(path, error))?;
        let file = File::from(file);
        let failed = |error: io::Error| self.unreadable(path, error.into());
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(self.unreadable(path, Unreadable::NoFile));
        }
        let mut content = Vec::new();
        file.take(limit + 1).read_to_end(&mut content).map_err(failed)?;
        if content.len() as u64 > limit {
            return Err(self.unreadable(path, Unreadable::TooLarge { size: metadata.len(), limit }));
        }
        Ok(content)
    }

    fn descriptor(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    fn failed(&self, path: &Path, error: rustix::io::Errno) -> TreeError {
        self.unreadable(path, io::Error::from(error).into())
    }

    fn endless(&self, path: &Path, what: &'static str, limit: usize) -> TreeError {
        self.unreadable(path, Unreadable::Endless { what, limit })
    }

    fn unreadable(&self, path: &Path, reason: Unreadable) -> TreeError {
        TreeError { path: self.path.join(path), reason }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_within_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("a")).unwrap();
        fs::write(root.join("secret"), "inside").unwrap();
        symlink("../../secret", root.join("a/up")).unwrap();
        symlink("/secret", root.join("a/absolute")).unwrap();
        symlink(dir.path().join("secret"), root.join("a/out")).unwrap();
        let tree = Tree::open(&root).unwrap();
        assert_eq!(tree.text(Path::new("a/up")).unwrap(), "inside");
        assert_eq!(tree.text(Path::new("a/absolute")).unwrap(), "inside");
        assert!(tree.text(Path::new("a/out")).is_err());
        let names: Vec<_> = tree.list(Path::new("a")).unwrap().into_iter().map(|entry| entry.path).collect();
        assert_eq!(names, [Path::new("a/absolute"), Path::new("a/up")]);
    }

    #[test]
    fn a_walk_ends_where_links_lead_in_circles() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/file"), "").unwrap();
        symlink("..", dir.path().join("a/b/up")).unwrap();
        symlink("a", dir.path().join("z")).unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        let mut seen = Vec::new();
        tree.walk(Path::new(""), &mut |entry| {
            seen.push(entry.path.display().to_string());
            true
        })
        .unwrap();
        assert_eq!(seen, ["a", "z", "a/b", "a/b/file", "a/b/up"]);
    }

    #[test]
    fn pipes_and_large_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::File::create(dir.path().join("large")).unwrap().set_len(FILE_LIMIT_BYTES + 1).unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        assert!(matches!(tree.read(Path::new("pipe")), Err(TreeError { reason: Unreadable::NoFile, .. })));
        assert!(matches!(
            tree.read(Path::new("large")),
            Err(TreeError { reason: Unreadable::TooLarge { .. }, .. })
        ));
    }
}
