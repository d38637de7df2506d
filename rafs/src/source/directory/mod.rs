//! A directory as a layer.
//!
//! The walk is in order of names, bytewise, each directory before its content, so the same tree gives the same sequence.
//! It goes down by descriptors and never through a symbolic link, so what is renamed or replaced meanwhile cannot lead it
//! out of the directory. File systems mounted within are walked too. A tree that changes while it is read is an error
//! where that shows: a file that vanishes, is replaced, or has another size or time after its content was read.
//!
//! The first name of a file that has more becomes the file and each later one a hard link to it, also where the file is a
//! symbolic link, a device, a fifo or a socket. Extended attributes are those that the process may read; `trusted.*`
//! needs root.

mod error;
#[cfg(test)]
mod tests;
mod xattr;

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, fstat, openat, readlinkat, statat};

pub use error::DirectoryError;

use self::error::VisitFailure;
use self::xattr::XattrReader;
use super::{Entry, EntryKind, Source, SourceError};
use crate::tree::{DeviceNumber, Metadata, Time, Xattrs};

/// The number of directories that are kept open: deeper trees reopen parents on the way up, so depth is not limited by
/// the number of descriptors a process may have.
const OPEN_LEVELS_LIMIT: usize = 64;

/// Directories are listed in pieces of this size.
const LIST_BUFFER_BYTES: usize = 32 << 10;

/// Walks a directory.
pub struct DirectorySource {
    /// Where the directory is, for messages.
    root: PathBuf,
    /// The directories from the root to the current one. Empty before the start and after the end.
    levels: Vec<Level>,
    /// The current directory's path, relative to the root; empty for the root itself.
    directory: Vec<u8>,
    /// The name of the current entry in it, for messages.
    name: Vec<u8>,
    /// The first names of files that have several.
    links: HashMap<Identity, Vec<u8>>,
    file: Option<OpenFile>,
    /// The opened root, until the walk starts.
    start: Option<OwnedFd>,
    xattrs: XattrReader,
}

/// A directory whose entries are being given.
struct Level {
    /// Closed while the walk is far below.
    fd: Option<OwnedFd>,
    identity: Identity,
    /// What is left of its names, in reverse order.
    names: Vec<CString>,
    /// The length of its parent's path in [`DirectorySource::directory`].
    parent_path: usize,
}

/// The regular file whose content is read.
struct OpenFile {
    file: File,
    left: u64,
    stat: Stat,
}

/// What tells files apart.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl From<&Stat> for Identity {
    fn from(stat: &Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

impl DirectorySource {
    /// Opens the directory at `path`, following symbolic links to it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SourceError> {
        let root = path.as_ref().to_path_buf();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let start = openat(CWD, &root, flags, Mode::empty()).map_err(|errno| DirectoryError::Io {
            action: "open",
            path: root.clone(),
            source: errno.into(),
        })?;
        Ok(Self {
            root,
            levels: Vec::new(),
            directory: Vec::new(),
            name: Vec::new(),
            links: HashMap::new(),
            file: None,
            start: Some(start),
            xattrs: XattrReader::new(),
        })
    }

    fn error(&mut self, failure: VisitFailure) -> SourceError {
        self.levels.clear();
        self.file = None;
        failure.at(&self.root, &joined(&self.directory, &self.name)).into()
    }

    fn step(&mut self) -> Result<Option<Entry>, VisitFailure> {
        self.file = None;
        self.name.clear();
        if let Some(fd) = self.start.take() {
            let stat = fstat(&fd).map_err(VisitFailure::io("stat"))?;
            let xattrs = self.xattrs.of_descriptor(&fd)?;
            self.enter(fd, &stat, 0)?;
            return Ok(Some(entry(b".".to_vec(), &stat, xattrs, EntryKind::Directory)));
        }
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            match level.names.pop() {
                Some(name) => return self.visit(&name).map(Some),
                None => self.leave()?,
            }
        }
    }

    /// Makes the entry of a name in the current directory.
    fn visit(&mut self, name: &CStr) -> Result<Entry, VisitFailure> {
        self.name.clear();
        self.name.extend_from_slice(name.to_bytes());
        let path = joined(&self.directory, &self.name);
        let parent = self.current()?;
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(VisitFailure::io("stat"))?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if file_type == FileType::Directory {
            return self.visit_directory(name, path);
        }
        let identity = Identity::from(&stat);
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&identity) {
                let kind = EntryKind::HardLink(first.clone());
                return Ok(entry(path, &stat, Xattrs::new(), kind));
            }
            self.links.insert(identity, path.clone());
        }
        if file_type == FileType::RegularFile {
            return self.visit_regular(name, path, identity);
        }
        let parent = self.current()?;
        let kind = match file_type {
            FileType::Symlink => {
                let target = readlinkat(parent, name, Vec::new()).map_err(VisitFailure::io("read link"))?;
                EntryKind::Symlink(target.into_bytes().into())
            }
            FileType::CharacterDevice => EntryKind::CharDevice(device(&stat)),
            FileType::BlockDevice => EntryKind::BlockDevice(device(&stat)),
            FileType::Fifo => EntryKind::Fifo,
            FileType::Socket => EntryKind::Socket,
            _ => return Err(VisitFailure::Changed("is of no known type")),
        };
        let xattrs = xattrs_of_name(&self.levels, &mut self.xattrs, name)?;
        Ok(entry(path, &stat, xattrs, kind))
    }

    fn visit_directory(&mut self, name: &CStr, path: Vec<u8>) -> Result<Entry, VisitFailure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(self.current()?, name, flags, Mode::empty()).map_err(VisitFailure::io("open"))?;
        let stat = fstat(&fd).map_err(VisitFailure::io("stat"))?;
        let xattrs = self.xattrs.of_descriptor(&fd)?;
        let parent_path = self.directory.len();
        self.enter(fd, &stat, parent_path)?;
        self.directory.clone_from(&path);
        self.name.clear();
        Ok(entry(path, &stat, xattrs, EntryKind::Directory))
    }

    fn visit_regular(
        &mut self,
        name: &CStr,
        path: Vec<u8>,
        identity: Identity,
    ) -> Result<Entry, VisitFailure> {
        // Should a fifo have taken the file's place, opening must not wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = openat(self.current()?, name, flags, Mode::empty()).map_err(VisitFailure::io("open"))?;
        let stat = fstat(&fd).map_err(VisitFailure::io("stat"))?;
        if Identity::from(&stat) != identity {
            return Err(VisitFailure::Changed("was replaced while being read"));
        }
        let xattrs = self.xattrs.of_descriptor(&fd)?;
        let size = u64::try_from(stat.st_size).map_err(|_| VisitFailure::Changed("has a negative size"))?;
        self.file = Some(OpenFile { file: File::from(fd), left: size, stat });
        Ok(entry(path, &stat, xattrs, EntryKind::Regular { size }))
    }

    /// The descriptor of the current directory.
    fn current(&self) -> Result<&OwnedFd, VisitFailure> {
        current(&self.levels)
    }

    /// Lists a directory and makes it the current one.
    fn enter(&mut self, fd: OwnedFd, stat: &Stat, parent_path: usize) -> Result<(), VisitFailure> {
        let mut names = list(&fd)?;
        names.sort_unstable_by(|left, right| right.cmp(left));
        self.levels.push(Level { fd: Some(fd), identity: stat.into(), names, parent_path });
        if let Some(far) = self.levels.len().checked_sub(OPEN_LEVELS_LIMIT + 1) {
            self.levels[far].fd = None;
        }
        Ok(())
    }

    /// Makes the current directory's parent the current one.
    fn leave(&mut self) -> Result<(), VisitFailure> {
        let Some(left) = self.levels.pop() else { return Ok(()) };
        if let (Some(parent), Some(fd)) = (self.levels.last_mut(), &left.fd)
            && parent.fd.is_none()
        {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd =
                openat(fd, c"..", flags, Mode::empty()).map_err(VisitFailure::io("open the parent of"))?;
            if Identity::from(&fstat(&fd).map_err(VisitFailure::io("stat the parent of"))?) != parent.identity
            {
                return Err(VisitFailure::Changed("was moved while being read"));
            }
            parent.fd = Some(fd);
        }
        self.directory.truncate(left.parent_path);
        Ok(())
    }
}

impl Source for DirectorySource {
    fn next_entry(&mut self) -> Result<Option<Entry>, SourceError> {
        self.step().map_err(|failure| self.error(failure))
    }

    fn read(&mut self, buf: &mut [u8]) -> Result<usize, SourceError> {
        match &mut self.file {
            Some(file) => file.read(buf).map_err(|failure| self.error(failure)),
            None => Ok(0),
        }
    }
}

impl OpenFile {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, VisitFailure> {
        let limit = usize::try_from(self.left).map_or(buf.len(), |left| left.min(buf.len()));
        if limit == 0 {
            return Ok(0);
        }
        let count = loop {
            match self.file.read(&mut buf[..limit]) {
                Ok(0) => return Err(VisitFailure::Changed("shrank while being read")),
                Ok(count) => break count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(VisitFailure::Io { action: "read", source }),
            }
        };
        self.left -= count as u64;
        if self.left == 0 {
            self.verify_unchanged()?;
        }
        Ok(count)
    }

    /// A writer that came while the content was read would have left another size or time.
    fn verify_unchanged(&self) -> Result<(), VisitFailure> {
        let now = fstat(&self.file).map_err(VisitFailure::io("stat"))?;
        let before = &self.stat;
        let same = now.st_size == before.st_size
            && now.st_mtime == before.st_mtime
            && now.st_mtime_nsec == before.st_mtime_nsec;
        if same { Ok(()) } else { Err(VisitFailure::Changed("changed while being read")) }
    }
}

fn current(levels: &[Level]) -> Result<&OwnedFd, VisitFailure> {
    let fd = levels.last().and_then(|level| level.fd.as_ref());
    Ok(fd.expect("the walk is in a directory, and the innermost is always open"))
}

fn xattrs_of_name(levels: &[Level], reader: &mut XattrReader, name: &CStr) -> Result<Xattrs, VisitFailure> {
    reader.of_name(current(levels)?, name)
}

/// The names in a directory, in no order.
fn list(fd: &OwnedFd) -> Result<Vec<CString>, VisitFailure> {
    let mut buffer = Vec::with_capacity(LIST_BUFFER_BYTES);
    let mut listing = RawDir::new(fd, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = listing.next() {
        let entry = entry.map_err(VisitFailure::io("list"))?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn entry(path: Vec<u8>, stat: &Stat, xattrs: Xattrs, kind: EntryKind) -> Entry {
    let metadata = Metadata {
        permissions: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 },
        xattrs,
    };
    Entry { path, metadata, kind }
}

fn device(stat: &Stat) -> DeviceNumber {
    DeviceNumber { major: rustix::fs::major(stat.st_rdev), minor: rustix::fs::minor(stat.st_rdev) }
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match (directory, name) {
        (b"", name) => name.to_vec(),
        (directory, b"") => directory.to_vec(),
        (directory, name) => [directory, b"/", name].concat(),
    }
}
