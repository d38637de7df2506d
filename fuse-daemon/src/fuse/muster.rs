//! The threads of a session, before they hear the kernel.
//!
//! A request that a thread has read and not answered when the daemon is killed comes again. But one that is just being copied to a
//! thread which is killed fails, with EIO, if the memory for it is not there yet: the kernel brings no page in for who is about to
//! end. So each thread hears something of ours first, which brings its memory in, where it is locked, and waits for the others.
//!
//! Besides, whoever mounts knows from then on that the session has threads, before anybody depends on them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fuser::{INodeNo, Request};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::sys;

/// How long is waited for threads that start.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked whether there are fewer than there should be.
const LOOK: Duration = Duration::from_millis(20);

/// FUSE_FORGET of `linux/fuse.h`, which has no answer.
const FORGET: u32 = 2;

/// What no request of the kernel is about.
const NO_INODE: INodeNo = INodeNo(0);

/// `struct fuse_in_header` and `struct fuse_forget_in`: length and opcode, the id, and nothing else but zeros.
const MESSAGE_BYTES: usize = 48;

/// See the module.
#[derive(Debug)]
pub(super) struct Muster {
    threads: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    arrived: usize,
    /// Nobody waits any more.
    over: bool,
}

/// What the threads hear until the muster is over. Dropped before, they end.
#[derive(Debug)]
pub(super) struct Call<'a> {
    muster: &'a Muster,
    _ours: OwnedFd,
}

impl Muster {
    /// Of so many threads.
    pub(super) fn new(threads: usize) -> Self {
        Self { threads, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Has threads that will read from `place` hear this first.
    pub(super) fn call(&self, place: BorrowedFd<'_>) -> io::Result<Call<'_>> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let mut message = [0; MESSAGE_BYTES];
        message[..4].copy_from_slice(&(MESSAGE_BYTES as u32).to_ne_bytes());
        message[4..8].copy_from_slice(&FORGET.to_ne_bytes());
        message[8] = 1;
        for _ in 0..self.threads {
            nix::unistd::write(&ours, &message)?;
        }
        sys::replace(theirs.as_fd(), place)?;
        Ok(Call { muster: self, _ours: ours })
    }

    /// A thread hears `request`, which is about an inode: waits with it, if it is ours.
    pub(super) fn arrive(&self, request: &Request, inode: INodeNo) {
        if inode != NO_INODE {
            return;
        }
        // It is where the thread has all its requests. What cannot be locked is there at least for now.
        sys::lock(std::ptr::from_ref(request).addr(), 1);
        let mut state = self.lock();
        state.arrived += 1;
        self.changed.notify_all();
        while !state.over {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call<'_> {
    /// Waits until all threads have come, or as many as there are once `all_started`.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn wait(&self, all_started: impl Fn() -> bool) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut state = self.muster.lock();
        while state.arrived < self.muster.threads && Instant::now() < end {
            if state.arrived > 0 && all_started() {
                break;
            }
            let waited = self.muster.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.arrived == 0 { Err(io::Error::other("it has no threads")) } else { Ok(()) }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.muster.lock().over = true;
        self.muster.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn one_message_is_there_for_each_thread() {
        let place = File::open("/dev/null").unwrap();
        let number = place.as_raw_fd();
        let muster = Muster::new(3);
        let call = muster.call(place.as_fd()).unwrap();
        assert_eq!(place.as_raw_fd(), number);
        for _ in 0..3 {
            let mut message = [0; 64];
            assert_eq!(nix::unistd::read(&place, &mut message).unwrap(), MESSAGE_BYTES);
            assert_eq!((message[0], message[4]), (48, 2));
        }
        drop(call);
        assert_eq!(nix::unistd::read(&place, &mut [0; 64]).unwrap(), 0);
    }

    #[test]
    fn a_session_without_threads_is_an_error() {
        let place = File::open("/dev/null").unwrap();
        let muster = Muster::new(0);
        let error = muster.call(place.as_fd()).unwrap().wait(|| true).unwrap_err();
        assert!(error.to_string().contains("no threads"), "{error}");
    }
}
