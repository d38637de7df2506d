//! The threads that serve a mount.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, SessionACL};
use nix::sys::statfs::statfs;

use super::connection::{FuseConnection, Rights};
use super::journal::JournalConfig;
use super::negotiated::Negotiated;
use super::stand_in::StandIn;
use super::{Adapter, PathSearches, relay};
use crate::fs::FileSystem;
use crate::sys::DescriptorPlace;

/// How long to wait between attempts to unmount what is busy.
const RETRY: Duration = Duration::from_millis(20);

/// `FUSE_NOTIFY_RESEND` of `linux/fuse.h`, known from Linux 6.9 on.
const NOTIFY_RESEND: i32 = 7;

/// Why a file system cannot be mounted, taken over or unmounted.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct SessionError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SessionError {
    move |source| SessionError { action, path: path.to_owned(), source }
}

/// How to mount and serve.
pub(crate) struct Options<'a> {
    /// The mount's source in `/proc/mounts`.
    pub(crate) source: &'a str,
    /// What people call the image, in logs.
    pub(crate) image: &'a str,
    /// Who looks for paths that logs name, for all mounts.
    pub(crate) searches: &'a PathSearches,
    pub(crate) mountpoint: &'a Path,
    pub(crate) rights: Rights,
    /// Threads that take requests from the kernel. None of them waits for a registry.
    pub(crate) threads: usize,
    /// What the kernel reads ahead of a program, in KiB; `None` leaves its default of 128.
    pub(crate) read_ahead_kib: Option<u32>,
    /// Where requests are noted for who takes over, if somebody may.
    pub(crate) journal: Option<&'a JournalConfig>,
}

impl Options<'_> {
    /// The journal, if one is kept with a kernel that offers this.
    fn journal(&self, negotiated: Negotiated) -> Option<&JournalConfig> {
        self.journal.filter(|journal| journal.is_needed(negotiated))
    }
}

/// What another daemon needs to serve a mount after this one.
pub(crate) struct HandedOver {
    /// A duplicate of its descriptor.
    pub(crate) descriptor: OwnedFd,
    /// Its device number.
    pub(crate) device: u64,
    pub(crate) negotiated: Negotiated,
}

/// A file system that is mounted and served. Dropped without [`unmount`](Session::unmount), it goes on until somebody
/// else unmounts it.
pub(crate) struct Session {
    connection: Arc<FuseConnection>,
    negotiated: Negotiated,
    /// Disconnected when the last thread has let go of the file system.
    ended: Mutex<mpsc::Receiver<()>>,
    _threads: BackgroundSession,
}

/// A session that knows what was negotiated, and has no thread yet.
struct Begun<'a, Held: Send + Sync + 'static> {
    session: fuser::Session<Adapter<EndMark<Held>>>,
    negotiated: Negotiated,
    /// Set when its end is to be the mount's.
    armed: &'a AtomicBool,
    /// Disconnected when nothing of it is left.
    ended: &'a mpsc::Receiver<()>,
}

/// Tells the end of a session by being dropped.
struct EndMark<Held> {
    // Dropped in this order: who hears of the end finds everything else released.
    _held: Held,
    _abort: AbortOnDrop,
    _sender: Mutex<mpsc::Sender<()>>,
}

/// Has those who still wait for the file system fail: without this they would wait for good, as its descriptor is open.
struct AbortOnDrop {
    connection: Arc<FuseConnection>,
    /// Not before it was to be served: what cannot be taken over at all is as it was, for another attempt.
    armed: Arc<AtomicBool>,
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if self.armed.load(Ordering::Relaxed) && self.connection.is_mounted() {
            tracing::error!(mountpoint = %self.connection.mountpoint().display(), "nobody serves this mount any more: reads fail");
            self.connection.abort();
        }
    }
}

impl Session {
    /// Mounts a file system and serves it; `held` is kept until the kernel has let go of it.
    pub(crate) fn mount<Held: Send + Sync + 'static>(
        fs: Arc<FileSystem>,
        held: Held,
        options: &Options<'_>,
    ) -> Result<Self, SessionError> {
        let at = options.mountpoint;
        let connection = Arc::new(FuseConnection::mount(options.source, at, options.rights)?);
        let descriptor = connection.duplicate();
        let serve = |begun: Begun<'_, Held>| {
            if let Some(journal) = options.journal(begun.negotiated) {
                let place = DescriptorPlace::of(begun.session.as_fd());
                let noted = journal.begin(connection.device());
                noted
                    .and_then(|noted| relay::begin(&connection, noted, Vec::new(), place, options.threads))
                    .map_err(failed("serve", at))?;
            }
            begun.armed.store(true, Ordering::Relaxed);
            begun.session.spawn().map_err(failed("start threads for", at))
        };
        let served =
            descriptor.and_then(|descriptor| Self::start(fs, held, options, &connection, descriptor, serve));
        served.inspect_err(|_| {
            if connection.is_mounted() {
                let _ = connection.detach();
            }
        })
    }

    /// Serves a file system that another daemon has mounted, and what it had not answered. On an error the mount is as it
    /// was, for another attempt.
    pub(crate) fn adopt<Held: Send + Sync + 'static>(
        fs: Arc<FileSystem>,
        held: Held,
        options: &Options<'_>,
        handed: HandedOver,
    ) -> Result<Self, SessionError> {
        let at = options.mountpoint;
        let connection = Arc::new(FuseConnection::adopt(handed.descriptor, at, handed.device)?);
        let threads = options.threads.max(1);
        let (stand_in, heard) = StandIn::new(handed.negotiated, threads).map_err(failed("take over", at))?;
        let session = Self::start(fs, held, options, &connection, heard, |begun| {
            let Begun { session, negotiated, armed, ended } = begun;
            let place = DescriptorPlace::of(session.as_fd());
            // It keeps what is at that place.
            let served = session.spawn().map_err(failed("start threads for", at))?;
            let is_over = || ended.try_recv() == Err(mpsc::TryRecvError::Disconnected);
            let taken = stand_in.wait_for_answer(is_over).and_then(|()| match options.journal(negotiated) {
                Some(journal) => relay_on(&connection, journal, place, options.threads),
                None => crate::sys::replace(connection.as_fd(), place),
            });
            if let Err(error) = taken {
                stand_in.dismiss();
                return Err(failed("take over", at)(error));
            }
            armed.store(true, Ordering::Relaxed);
            stand_in.step_aside();
            Ok(served)
        })?;
        drop(stand_in);
        if options.journal(session.negotiated).is_none()
            && let Err(error) = session.resend()
        {
            tracing::warn!(mountpoint = %at.display(), %error,
                "the kernel (before 6.9) does not repeat what the last daemon had not answered: programs that wait for that go on waiting");
        }
        Ok(session)
    }

    /// `descriptor` is what the session hears first; `serve` starts its threads.
    fn start<Held: Send + Sync + 'static>(
        fs: Arc<FileSystem>,
        held: Held,
        options: &Options<'_>,
        connection: &Arc<FuseConnection>,
        descriptor: OwnedFd,
        serve: impl FnOnce(Begun<'_, Held>) -> Result<BackgroundSession, SessionError>,
    ) -> Result<Self, SessionError> {
        let at = options.mountpoint;
        let (sender, ended) = mpsc::channel();
        let armed = Arc::new(AtomicBool::new(false));
        let abort = AbortOnDrop { connection: Arc::clone(connection), armed: Arc::clone(&armed) };
        let held = EndMark { _held: held, _abort: abort, _sender: Mutex::new(sender) };
        let mut config = Config::default();
        config.n_threads = Some(options.threads.max(1));
        // See `FuseConnection::duplicate`.
        config.clone_fd = false;
        let negotiated = Arc::new(OnceLock::new());
        let adapter = Adapter::new(fs, options, held, Arc::clone(&negotiated));
        let session = fuser::Session::from_fd(adapter, descriptor, SessionACL::All, config)
            .map_err(failed("serve", at))?;
        let silent = || failed("serve", at)(io::Error::other("the session began without FUSE_INIT"));
        let negotiated = negotiated.get().copied().ok_or_else(silent)?;
        let threads = serve(Begun { session, negotiated, armed: &armed, ended: &ended })?;
        // Always asks: it answers if a thread serves, and fails if none could be started.
        statfs(at).map_err(|errno| failed("serve", at)(errno.into()))?;
        if threads.guard.is_finished() {
            tracing::warn!(mountpoint = %at.display(), "served with fewer threads than configured: no more are left");
        }
        if let Some(kib) = options.read_ahead_kib
            && let Err(error) = set_read_ahead(connection.device(), kib)
        {
            tracing::info!(mountpoint = %at.display(), %error, "cannot set the kernel's read-ahead, its default is used");
        }
        Ok(Self {
            connection: Arc::clone(connection),
            negotiated,
            ended: Mutex::new(ended),
            _threads: threads,
        })
    }

    /// Has the kernel send again what was read and not answered.
    fn resend(&self) -> io::Result<()> {
        // `struct fuse_out_header`: length, code, and 0 for what answers no request.
        let mut notification = [0; 16];
        notification[..4].copy_from_slice(&16_u32.to_ne_bytes());
        notification[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
        nix::unistd::write(&*self.connection, &notification)?;
        Ok(())
    }

    /// What another daemon needs to go on after this one.
    pub(crate) fn hand_over(&self) -> Result<HandedOver, SessionError> {
        Ok(HandedOver {
            descriptor: self.connection.duplicate()?,
            device: self.connection.device(),
            negotiated: self.negotiated,
        })
    }

    /// Whether the mount still is at its place.
    pub(crate) fn is_mounted(&self) -> bool {
        self.connection.is_mounted()
    }

    /// Unmounts unless it is in use; whether it is unmounted.
    pub(crate) fn try_unmount(&self) -> Result<bool, SessionError> {
        self.connection.try_unmount()
    }

    /// Unmounts; if it is still in use after `patience`, it is detached, and ends with its last user. Waits until all
    /// is released, within the same time; whether it was.
    pub(crate) fn unmount(&self, patience: Duration) -> Result<bool, SessionError> {
        let end = Instant::now() + patience;
        while !self.try_unmount()? {
            if Instant::now() >= end {
                self.connection.detach()?;
                return Ok(false);
            }
            std::thread::sleep(RETRY);
        }
        let left = end.saturating_duration_since(Instant::now()).max(RETRY);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(ended.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Disconnected))
    }
}

/// Puts a relay before a session that takes over, with what the last daemon noted.
fn relay_on(
    connection: &Arc<FuseConnection>,
    journal: &JournalConfig,
    place: DescriptorPlace,
    threads: usize,
) -> io::Result<()> {
    let (noted, pages, pending) = match journal.go_on(connection.device()) {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(mountpoint = %connection.mountpoint().display(), %error,
                "what the last daemon had not answered is not known: who waits for that, waits on");
            let (noted, pages) = journal.begin(connection.device())?;
            (noted, pages, Vec::new())
        }
    };
    relay::begin(connection, (noted, pages), pending, place, threads)
}

fn set_read_ahead(device: u64, kib: u32) -> io::Result<()> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
}
