//! The adapter to `fuser`: translates requests and replies, and decides nothing.

mod attributes;
mod connection;
mod failures;
mod journal;
mod negotiated;
mod relay;
mod session;
mod stand_in;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::{
    AccessFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};

pub use connection::Rights;
use failures::Failures;
pub(crate) use failures::PathSearches;
pub use journal::JournalConfig;
pub(crate) use journal::dir_beside;
pub use negotiated::Negotiated;
pub(crate) use session::{HandedOver, Options, Session, SessionError};

use crate::errno;
use crate::fs::{FileSystem, FsError, Ino};

/// How long the kernel may keep what it learned, that something does not exist included: an image never changes.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Bytes of the largest read: 256 pages, what kernels allow without a changed `fs.fuse.max_pages_limit`.
const READ_LIMIT_BYTES: u32 = 1 << 20;

/// Reads ahead of programs that the kernel may have under way at once; beyond `fuser`'s 16, since each may wait for a
/// registry.
const BACKGROUND_LIMIT: u16 = 64;

const BLOCK_BYTES: u32 = 4096;
const NAME_LIMIT_BYTES: u32 = 255;

/// One image as `fuser` wants it.
pub(crate) struct Adapter<Held> {
    fs: Arc<FileSystem>,
    /// Whether the kernel understands that files need not be opened.
    no_open: bool,
    no_opendir: bool,
    failures: Arc<Failures>,
    /// What the kernel offered, for who serves this after us.
    negotiated: Arc<OnceLock<Negotiated>>,
    journal: Option<JournalConfig>,
    /// Kept until the kernel has let go of the file system.
    _held: Held,
}

impl<Held> Adapter<Held> {
    fn new(
        fs: Arc<FileSystem>,
        options: &Options<'_>,
        held: Held,
        negotiated: Arc<OnceLock<Negotiated>>,
    ) -> Self {
        let failures = Arc::new(Failures::new(options.image, options.searches.clone()));
        let journal = options.journal.cloned();
        Self { fs, no_open: false, no_opendir: false, failures, negotiated, journal, _held: held }
    }
}

fn error_of(error: &FsError) -> Errno {
    Errno::from_i32(errno::of(error) as i32)
}

impl<Held: Send + Sync + 'static> Filesystem for Adapter<Held> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS
            // Always, not only where the kernel finds that it pays: overlayfs looks up all that it lists.
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_ALLOW_IDMAP;
        let offered = config.capabilities() & wanted;
        let negotiated = Negotiated::of(config);
        self.no_open = negotiated.offers(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.no_opendir = negotiated.offers(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        // A session begins once.
        let _ = self.negotiated.set(negotiated);
        // The remaining errors name the nearest value that can be had; each is within its bounds.
        let _ = config.add_capabilities(offered);
        let is_relayed = self.journal.as_ref().is_some_and(|journal| journal.is_needed(negotiated));
        let _ = config.set_max_write(if is_relayed { relay::READ_LIMIT_BYTES } else { READ_LIMIT_BYTES });
        let _ = config.set_max_background(BACKGROUND_LIMIT);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.fs.lookup(Ino(parent.0), name.as_bytes()) {
            Ok(Some(found)) => reply.entry(&FOREVER, &attributes::of(&found), Generation(0)),
            // Unlike ENOENT, an entry without a file is something that the kernel remembers.
            Ok(None) => reply.entry(&FOREVER, &attributes::nothing(), Generation(0)),
            Err(error) => reply.error(error_of(&error)),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.fs.attributes(Ino(ino.0)) {
            Ok(found) => reply.attr(&FOREVER, &attributes::of(&found)),
            Err(error) => reply.error(error_of(&error)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.fs.read_link(Ino(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error_of(&error)),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_open {
            // Means: it is not needed. The kernel asks no more, and keeps what it has cached.
            return reply.error(Errno::ENOSYS);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_opendir {
            return reply.error(Errno::ENOSYS);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // A read that waits does not hold the file system, which ends with the mount.
        let (failures, search) = (Arc::clone(&self.failures), self.fs.path_search(Ino(ino.0)));
        self.fs.read(Ino(ino.0), offset, size, move |result| match result {
            Ok(bytes) => reply.data(bytes),
            Err(error) => {
                reply.error(error_of(&error));
                failures.log(search, Ino(ino.0), offset, &error);
            }
        });
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let read = self.fs.read_directory(Ino(ino.0), offset, |entry| {
            let kind = attributes::kind(entry.attributes.inode.kind);
            let ino = INodeNo(entry.attributes.ino.0);
            reply.add(ino, entry.next_offset, kind, OsStr::from_bytes(entry.name))
        });
        match read {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error_of(&error)),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let read = self.fs.read_directory(Ino(ino.0), offset, |entry| {
            let found = attributes::of(&entry.attributes);
            let name = OsStr::from_bytes(entry.name);
            reply.add(found.ino, entry.next_offset, name, &FOREVER, &found, Generation(0))
        });
        match read {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error_of(&error)),
        }
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if self.fs.has_no_xattrs() {
            // The kernel asks no more, of no file. overlayfs would ask for some of its own whenever it finds a file.
            return reply.error(Errno::ENOSYS);
        }
        answer_xattr(self.fs.xattr(Ino(ino.0), name.as_bytes()), size, reply);
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        answer_xattr(self.fs.xattr_names(Ino(ino.0)).map(Vec::into_boxed_slice), size, reply);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let totals = self.fs.totals();
        let blocks = totals.bytes.div_ceil(u64::from(BLOCK_BYTES));
        reply.statfs(blocks, 0, 0, totals.files, 0, BLOCK_BYTES, NAME_LIMIT_BYTES, BLOCK_BYTES);
    }

    /// Programs ask each file that they open whether it is a terminal.
    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    // What follows is not needed here; ENOSYS tells the kernel so, and it does not ask again.

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }
}

/// A value, or its size if the caller asked for that.
fn answer_xattr(value: Result<Box<[u8]>, FsError>, size: u32, reply: ReplyXattr) {
    match value {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(error_of(&error)),
    }
}
