//! A mount and its descriptor: made, recognised, taken away.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::statfs;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::session::{SessionError, failed};

/// The file system's type in `/proc/mounts`.
const TYPE: &str = "fuse.nydus-cluster";

/// Device number of `/dev/fuse`, the same on every Linux.
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// What the file system may do to those who see it, and who may.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rights {
    /// Set-uid programs work, as a root file system needs them.
    pub suid: bool,
    /// Device files work.
    pub dev: bool,
    /// Others than the user who mounts may look.
    pub allow_other: bool,
}

impl Rights {
    /// Those of a container's root file system: overlayfs takes programs and devices as they are below, and what a
    /// container may do with them is the runtime's to say.
    pub const CONTAINER: Self = Self { suid: true, dev: true, allow_other: true };
    /// Those of somebody who only looks.
    pub const VIEWER: Self = Self { suid: false, dev: false, allow_other: false };
}

/// A FUSE mount. Its descriptor keeps it alive, whoever reads from it; dropped, it stays mounted.
#[derive(Debug)]
pub(crate) struct FuseConnection {
    descriptor: OwnedFd,
    mountpoint: PathBuf,
    /// The mount's device number, to tell it from what else may get mounted there.
    device: u64,
}

impl FuseConnection {
    /// Mounts; nothing is served yet.
    pub(super) fn mount(source: &str, at: &Path, rights: Rights) -> Result<Self, SessionError> {
        prepare(at)?;
        let device = Path::new("/dev/fuse");
        let file = File::options().read(true).write(true).open(device).map_err(failed("open", device))?;
        let mut data =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions", file.as_raw_fd());
        let mut flags = MsFlags::MS_RDONLY | MsFlags::MS_NOATIME;
        if rights.allow_other {
            data.push_str(",allow_other");
        }
        flags.set(MsFlags::MS_NOSUID, !rights.suid);
        flags.set(MsFlags::MS_NODEV, !rights.dev);
        mount(Some(source), at, Some(TYPE), flags, Some(data.as_str()))
            .map_err(|errno| failed("mount on", at)(errno.into()))?;
        let device = device_of(at).map_err(failed("examine", at)).inspect_err(|_| {
            let _ = umount2(at, MntFlags::MNT_DETACH);
        })?;
        Ok(Self { descriptor: file.into(), mountpoint: at.to_owned(), device })
    }

    /// The mount of that device number, whose descriptor somebody else has kept.
    pub(super) fn adopt(descriptor: OwnedFd, at: &Path, device: u64) -> Result<Self, SessionError> {
        let wrong = |problem| failed("take over", at)(io::Error::new(io::ErrorKind::InvalidInput, problem));
        let stat = rustix::fs::fstat(&descriptor).map_err(|errno| failed("examine", at)(errno.into()))?;
        if (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) != FUSE_DEVICE {
            return Err(wrong("the descriptor is none of /dev/fuse"));
        }
        let connection = Self { descriptor, mountpoint: at.to_owned(), device };
        if connection.is_mounted() { Ok(connection) } else { Err(wrong("it is not mounted there any more")) }
    }

    pub(super) fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    pub(super) fn device(&self) -> u64 {
        self.device
    }

    /// Another descriptor of the same open file: a request that was read through one can be answered through the other.
    /// (Not so with FUSE_DEV_IOC_CLONE: what was read through a clone fails when the clone is closed.)
    pub(super) fn duplicate(&self) -> Result<OwnedFd, SessionError> {
        self.descriptor.try_clone().map_err(failed("duplicate the descriptor of", &self.mountpoint))
    }

    /// Whether the mount still is at its place. Asks nobody who serves it.
    pub(super) fn is_mounted(&self) -> bool {
        device_of(&self.mountpoint).is_ok_and(|device| device == self.device)
    }

    /// Unmounts unless it is in use; whether it is unmounted.
    pub(super) fn try_unmount(&self) -> Result<bool, SessionError> {
        if !self.is_mounted() {
            return Ok(true);
        }
        match umount2(&self.mountpoint, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => Ok(true),
            Err(Errno::EBUSY) => Ok(false),
            Err(errno) => Err(failed("unmount", &self.mountpoint)(errno.into())),
        }
    }

    /// Takes it from its place; it ends with its last user.
    pub(super) fn detach(&self) -> Result<(), SessionError> {
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        umount2(&self.mountpoint, flags).map_err(|errno| failed("detach", &self.mountpoint)(errno.into()))
    }

    /// Has everything that waits for the file system fail, now and later: nobody serves it any more.
    pub(super) fn abort(&self) {
        let minor = nix::sys::stat::minor(self.device);
        if std::fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1").is_ok() {
            return;
        }
        // Where that file system is not mounted. The kernel aborts first, and then may find the mount in use.
        if self.is_mounted() {
            let _ = umount2(&self.mountpoint, MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW);
        }
    }
}

impl AsFd for FuseConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The device number at a place, as the kernel has it: a FUSE file system is not asked.
fn device_of(path: &Path) -> io::Result<u64> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    let found = statx(CWD, path, flags, StatxFlags::TYPE)?;
    Ok(nix::sys::stat::makedev(found.stx_dev_major.into(), found.stx_dev_minor.into()))
}

/// Makes the mountpoint; dead mounts there, whose daemon is gone, are cleared away.
fn prepare(at: &Path) -> Result<(), SessionError> {
    // Not by `stat`, which the kernel answers for a dead mount from what it was told to remember forever. Of one that dies just now,
    // as a process of its daemon still was there, the question is aborted.
    while statfs(at).is_err_and(|errno| matches!(errno, Errno::ENOTCONN | Errno::ECONNABORTED)) {
        tracing::info!(mountpoint = %at.display(), "removing a mount whose daemon is gone");
        umount2(at, MntFlags::MNT_DETACH).map_err(|errno| failed("detach", at)(errno.into()))?;
    }
    std::fs::create_dir_all(at).map_err(failed("make directory", at))
}
