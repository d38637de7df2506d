//! Unpacking to a directory.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType as Type, Mode, OFlags, Timespec, Timestamps, XattrFlags};

use super::error::shown;
use super::staging::Staging;
use super::{Unpack, UnpackError};
use crate::blob::source::{BlobSource, ChunkReader};
use crate::bootstrap::{Found, Inode, Nid, Visitor, walk};
use crate::layout::v6::FileType;

/// Directories nested deeper than this are refused: no path names what is in them (`PATH_MAX` is 4,096 bytes), and an open
/// directory is held for each level.
const DEPTH_LIMIT: usize = 2048;

/// See [`Unpack::to_directory`].
pub(super) fn unpack<S: BlobSource>(image: Unpack<'_, S>, target: &Path) -> Result<(), UnpackError> {
    let staging = Staging::new(target)?;
    let outcome = fill(image, staging.path()).and_then(|()| staging.publish());
    if outcome.is_err() {
        staging.abandon();
    }
    outcome
}

fn fill<S: BlobSource>(image: Unpack<'_, S>, target: &Path) -> Result<(), UnpackError> {
    let io = |action| {
        move |error: rustix::io::Errno| UnpackError::Io {
            path: target.display().to_string(),
            action,
            source: error.into(),
        }
    };
    let root = fs::open(target, DIRECTORY, Mode::empty()).map_err(io("open the directory"))?;
    let chunks = ChunkReader::new(image.bootstrap, image.source);
    let is_root = nix::unistd::geteuid().is_root();
    let file_system = root.try_clone().map_err(|error| io_error(b"", "open the directory", error))?;
    walk(
        image.bootstrap,
        image.limits,
        &mut UnpackedDirectory { image, chunks, directories: vec![root], is_root },
    )?;
    fs::syncfs(file_system).map_err(io("write to disk"))
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

struct UnpackedDirectory<'a, S> {
    image: Unpack<'a, S>,
    chunks: ChunkReader<'a, S>,
    /// The directories from the target to the one that is being filled.
    directories: Vec<OwnedFd>,
    is_root: bool,
}

impl<S: BlobSource> Visitor for UnpackedDirectory<'_, S> {
    type Error = UnpackError;

    fn enter(&mut self, found: &Found<'_>) -> Result<(), UnpackError> {
        if found.path.is_empty() {
            return Ok(());
        }
        self.image.watch(0)?;
        let name = name(found.path);
        let io = |action| move |source: rustix::io::Errno| io_error(found.path, action, source.into());
        if let Some(first) = found.link_to() {
            return self.hard_link(&first, found);
        }
        let parent = self.parent();
        match found.inode.kind {
            FileType::Directory if self.directories.len() > DEPTH_LIMIT => {
                return Err(UnpackError::TooDeep { path: shown(found.path), limit: DEPTH_LIMIT });
            }
            FileType::Directory => {
                fs::mkdirat(parent, name, Mode::RWXU).map_err(io("make the directory"))?;
                let opened =
                    fs::openat(parent, name, DIRECTORY, Mode::empty()).map_err(io("open the directory"))?;
                self.directories.push(opened);
                // Its own metadata comes last: files that are made in it change its time.
                return Ok(());
            }
            FileType::Regular => return self.regular(found),
            FileType::Symlink => {
                let target = self.image.bootstrap.read_link(found.nid)?;
                fs::symlinkat(target, parent, name).map_err(io("make the symbolic link"))?;
            }
            FileType::CharDevice | FileType::BlockDevice if !self.is_root => {
                tracing::warn!(path = %shown(found.path), "device left out: only root can make devices");
                return Ok(());
            }
            FileType::CharDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket => {
                let rdev = fs::makedev(found.inode.rdev.major, found.inode.rdev.minor);
                fs::mknodat(parent, name, node_type(found.inode.kind), Mode::RUSR | Mode::WUSR, rdev)
                    .map_err(io("make the special file"))?;
            }
        }
        // A path through /proc names the file itself, for extended attributes cannot be set by parent and name.
        self.metadata(found.path, &found.inode, found.nid)
    }

    fn leave(&mut self, path: &[u8], nid: Nid) -> Result<(), UnpackError> {
        let inode = self.image.bootstrap.inode(nid)?;
        let Some(directory) = self.directories.pop() else { return Ok(()) };
        self.open_metadata(path, &inode, nid, &directory)
    }
}

impl<S: BlobSource> UnpackedDirectory<'_, S> {
    fn parent(&self) -> &OwnedFd {
        self.directories.last().expect("the target is open until the walk ends")
    }

    fn regular(&mut self, found: &Found<'_>) -> Result<(), UnpackError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(self.parent(), name(found.path), flags, Mode::RUSR | Mode::WUSR)
            .map_err(|source| io_error(found.path, "make the file", source.into()))?;
        let file = std::fs::File::from(file);
        for piece in self.image.bootstrap.chunks(found.nid, 0..found.inode.size)? {
            let piece = piece?;
            let content = self.chunks.read(piece.blob, piece.chunk);
            let content = content
                .map_err(|error| UnpackError::Content { path: shown(found.path), source: Box::new(error) })?;
            file.write_all_at(piece.of(&content)?, piece.file_offset)
                .map_err(|source| io_error(found.path, "write the file", source))?;
            self.image.watch(piece.len.into())?;
        }
        self.open_metadata(found.path, &found.inode, found.nid, &file)
    }

    /// Links to an earlier name, which is reached step by step from the target without following symbolic links.
    fn hard_link(&self, first: &[u8], found: &Found<'_>) -> Result<(), UnpackError> {
        let io = |source: rustix::io::Errno| io_error(found.path, "make the hard link", source.into());
        let mut steps: Vec<&[u8]> = first.split(|&byte| byte == b'/').collect();
        let first_name = steps.pop().unwrap_or_default();
        let mut at = fs::openat(&self.directories[0], ".", DIRECTORY, Mode::empty()).map_err(io)?;
        for step in steps {
            at = fs::openat(&at, step, DIRECTORY, Mode::empty()).map_err(io)?;
        }
        match fs::linkat(&at, first_name, self.parent(), name(found.path), AtFlags::empty()) {
            Err(rustix::io::Errno::NOENT) if !self.is_root && found.inode.kind != FileType::Regular => Ok(()),
            result => result.map_err(io),
        }
    }

    /// Owner, then mode (a change of owner clears set-uid), extended attributes (so does it with capabilities), time.
    fn open_metadata(
        &self,
        path: &[u8],
        inode: &Inode,
        nid: Nid,
        file: &impl AsFd,
    ) -> Result<(), UnpackError> {
        let io = |action| move |source: rustix::io::Errno| io_error(path, action, source.into());
        if self.is_root {
            let (uid, gid) = owner(inode);
            fs::fchown(file, Some(uid), Some(gid)).map_err(io("set the owner"))?;
        }
        for (name, value) in self.image.xattrs(path, inode.kind, nid)? {
            let result = fs::fsetxattr(file, &name[..], &value, XattrFlags::empty());
            self.xattr_result(path, &name, result)?;
        }
        fs::fchmod(file, Mode::from_raw_mode(inode.permissions.into())).map_err(io("set the mode"))?;
        fs::futimens(file, &times(inode)).map_err(io("set the time"))
    }

    fn metadata(&self, path: &[u8], inode: &Inode, nid: Nid) -> Result<(), UnpackError> {
        let io = |action| move |source: rustix::io::Errno| io_error(path, action, source.into());
        let (parent, name) = (self.parent(), name(path));
        if self.is_root {
            let (uid, gid) = owner(inode);
            fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(io("set the owner"))?;
        }
        if inode.kind != FileType::Symlink {
            let mode = Mode::from_raw_mode(inode.permissions.into());
            fs::chmodat(parent, name, mode, AtFlags::empty()).map_err(io("set the mode"))?;
        }
        let xattrs = self.image.xattrs(path, inode.kind, nid)?;
        if !xattrs.is_empty() {
            use std::os::fd::AsRawFd;
            let by_path = [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), name].concat();
            for (name, value) in xattrs {
                let result = fs::lsetxattr(&by_path[..], &name[..], &value, XattrFlags::empty());
                self.xattr_result(path, &name, result)?;
            }
        }
        fs::utimensat(parent, name, &times(inode), AtFlags::SYMLINK_NOFOLLOW).map_err(io("set the time"))
    }

    fn xattr_result(
        &self,
        path: &[u8],
        name: &[u8],
        result: rustix::io::Result<()>,
    ) -> Result<(), UnpackError> {
        match result {
            Err(error @ (rustix::io::Errno::PERM | rustix::io::Errno::OPNOTSUPP)) if !self.is_root => {
                tracing::warn!(path = %shown(path), name = %name.escape_ascii(), %error, "extended attribute left out");
                Ok(())
            }
            result => result.map_err(|source| io_error(path, "set an extended attribute", source.into())),
        }
    }
}

fn io_error(path: &[u8], action: &'static str, source: io::Error) -> UnpackError {
    UnpackError::Io { path: shown(path), action, source }
}

fn name(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}

fn owner(inode: &Inode) -> (rustix::fs::Uid, rustix::fs::Gid) {
    (rustix::fs::Uid::from_raw(inode.uid), rustix::fs::Gid::from_raw(inode.gid))
}

fn times(inode: &Inode) -> Timestamps {
    let time = Timespec { tv_sec: inode.mtime.seconds, tv_nsec: inode.mtime.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn node_type(kind: FileType) -> Type {
    match kind {
        FileType::Regular => Type::RegularFile,
        FileType::Directory => Type::Directory,
        FileType::CharDevice => Type::CharacterDevice,
        FileType::BlockDevice => Type::BlockDevice,
        FileType::Fifo => Type::Fifo,
        FileType::Socket => Type::Socket,
        FileType::Symlink => Type::Symlink,
    }
}
