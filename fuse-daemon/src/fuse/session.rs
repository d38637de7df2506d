//! A FUSE mount and the threads that serve it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::statfs;

use super::Adapter;
use crate::fs::FileSystem;

/// The file system's type in `/proc/mounts`.
const TYPE: &str = "fuse.nydus-cluster";

/// How long to wait between attempts to unmount what is busy.
const RETRY: Duration = Duration::from_millis(20);

/// Why a file system cannot be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct SessionError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SessionError {
    move |source| SessionError { action, path: path.to_owned(), source }
}

/// How to mount.
pub(crate) struct Options<'a> {
    /// The mount's source in `/proc/mounts`.
    pub(crate) source: &'a str,
    pub(crate) mountpoint: &'a Path,
    /// Threads that take requests from the kernel. None of them waits for a registry.
    pub(crate) threads: usize,
    /// What the kernel reads ahead of a program, in KiB; `None` leaves its default of 128.
    pub(crate) read_ahead_kib: Option<u32>,
}

/// A file system that is mounted and served. Dropped without [`unmount`](Session::unmount), it goes on until somebody
/// else unmounts it.
pub(crate) struct Session {
    mountpoint: PathBuf,
    /// The mount's device number, to tell it from what else may get mounted there.
    device: u64,
    /// Disconnected when the last thread has let go of the file system.
    ended: Mutex<mpsc::Receiver<()>>,
    _threads: BackgroundSession,
}

/// Tells the end of a session by being dropped.
struct EndMark<Held> {
    // Dropped in this order: who hears of the end finds everything else released.
    _held: Held,
    _sender: Mutex<mpsc::Sender<()>>,
}

impl Session {
    /// Mounts a file system and serves it; `held` is kept until the kernel has let go of it.
    pub(crate) fn mount<Held: Send + Sync + 'static>(
        fs: FileSystem,
        held: Held,
        options: &Options<'_>,
    ) -> Result<Self, SessionError> {
        let at = options.mountpoint;
        prepare(at)?;
        let device = Path::new("/dev/fuse");
        let file = File::options().read(true).write(true).open(device).map_err(failed("open", device))?;
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
            file.as_raw_fd()
        );
        // Devices and set-uid programs work as in any root file system.
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOATIME;
        mount(Some(options.source), at, Some(TYPE), flags, Some(data.as_str()))
            .map_err(|errno| failed("mount on", at)(errno.into()))?;
        Self::serve(fs, held, options, file).inspect_err(|_| {
            let _ = umount2(at, MntFlags::MNT_DETACH);
        })
    }

    fn serve<Held: Send + Sync + 'static>(
        fs: FileSystem,
        held: Held,
        options: &Options<'_>,
        file: File,
    ) -> Result<Self, SessionError> {
        let at = options.mountpoint;
        let (sender, ended) = mpsc::channel();
        let held = EndMark { _held: held, _sender: Mutex::new(sender) };
        let mut config = Config::default();
        config.n_threads = Some(options.threads.max(1));
        config.clone_fd = true;
        let session =
            fuser::Session::from_fd(Adapter::new(fs, held), OwnedFd::from(file), SessionACL::All, config)
                .map_err(failed("serve", at))?;
        let threads = session.spawn().map_err(failed("start threads for", at))?;
        let device = std::fs::metadata(at).map_err(failed("examine", at))?.dev();
        if let Some(kib) = options.read_ahead_kib
            && let Err(error) = set_read_ahead(device, kib)
        {
            tracing::info!(mountpoint = %at.display(), %error, "cannot set the kernel's read-ahead, its default is used");
        }
        Ok(Self { mountpoint: at.to_owned(), device, ended: Mutex::new(ended), _threads: threads })
    }

    /// Whether the mount still is at its place.
    pub(crate) fn is_mounted(&self) -> bool {
        std::fs::metadata(&self.mountpoint).is_ok_and(|metadata| metadata.dev() == self.device)
    }

    /// Unmounts unless it is in use; whether it is unmounted.
    pub(crate) fn try_unmount(&self) -> Result<bool, SessionError> {
        if !self.is_mounted() {
            return Ok(true);
        }
        match umount2(&self.mountpoint, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => Ok(true),
            Err(Errno::EBUSY) => Ok(false),
            Err(errno) => Err(failed("unmount", &self.mountpoint)(errno.into())),
        }
    }

    /// Unmounts; if it is still in use after `patience`, it is detached, and ends with its last user. Waits until all
    /// is released, within the same time; whether it was.
    pub(crate) fn unmount(&self, patience: Duration) -> Result<bool, SessionError> {
        let end = Instant::now() + patience;
        while !self.try_unmount()? {
            if Instant::now() >= end {
                let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
                umount2(&self.mountpoint, flags)
                    .map_err(|errno| failed("detach", &self.mountpoint)(errno.into()))?;
                return Ok(false);
            }
            std::thread::sleep(RETRY);
        }
        let left = end.saturating_duration_since(Instant::now()).max(RETRY);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(ended.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Disconnected))
    }
}

/// Makes the mountpoint; dead mounts there, whose daemon is gone, are cleared away.
fn prepare(at: &Path) -> Result<(), SessionError> {
    // Not by `stat`, which the kernel answers for a dead mount from what it was told to remember forever.
    while statfs(at).is_err_and(|errno| errno == Errno::ENOTCONN) {
        tracing::info!(mountpoint = %at.display(), "clearing away a mount whose daemon is gone");
        umount2(at, MntFlags::MNT_DETACH).map_err(|errno| failed("detach", at)(errno.into()))?;
    }
    std::fs::create_dir_all(at).map_err(failed("make directory", at))
}

fn set_read_ahead(device: u64, kib: u32) -> io::Result<()> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
}
