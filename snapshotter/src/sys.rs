//! System calls that no safe crate offers.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Makes the command run in a session of its own, so that what ends our process group or terminal does not end it.
pub(crate) fn in_own_session(command: &mut tokio::process::Command) {
    // SAFETY: the closure runs in the child between fork and exec and calls setsid alone, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from));
    }
}

/// Something that becomes readable when the process ends, which need not be a child. Linux 5.3.
pub(crate) fn watch_process(pid: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let descriptor = pidfd_open(pid)?;
    // SAFETY: an `OwnedFd` keeps its descriptor open, and the same one, for as long as it lives.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    Ok(watched?)
}

fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: pidfd_open takes a process id and flags, both by value, and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether two descriptors are of one open file. Where the kernel does not say it, they are not.
pub(crate) fn is_same_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    /// `KCMP_FILE` of `linux/kcmp.h`.
    const FILE: libc::c_int = 0;
    let (process, one, other) = (std::process::id(), one.as_raw_fd(), other.as_raw_fd());
    // SAFETY: kcmp takes numbers alone, and touches no memory of ours.
    let compared = unsafe { libc::syscall(libc::SYS_kcmp, process, process, FILE, one, other) };
    compared == 0
}

/// The descriptors that an earlier process left with the service manager, by name. Whoever asks first gets them.
pub(crate) fn left_with_manager() -> Vec<(OwnedFd, String)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let owned = |(number, name)| {
        // SAFETY: the manager has opened it for this very process, before any of our code ran, and it is taken here alone,
        // once.
        (unsafe { OwnedFd::from_raw_fd(number) }, name)
    };
    service::manager::left().into_iter().map(owned).collect()
}

/// What the machine calls itself, in small letters, as a kubelet names its node unless it is told otherwise.
pub(crate) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_lowercase()
}
