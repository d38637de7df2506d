//! The kernel's part towards a session that takes over a mount, until a thread of the session has answered: a session whose
//! threads cannot be started must not have touched the mount, which waits for another attempt.
//!
//! ```text
//!   session <── socket ── stand-in: FUSE_INIT again, then one request
//!      │ an answer: a thread lives
//!      └── hears the kernel from here on; who still listens to the socket is sent there
//! ```

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use super::journal::{ID, id};
use super::negotiated::Negotiated;

/// Opcodes of `linux/fuse.h`.
const STATFS: u32 = 17;
pub(super) const FORGET: u32 = 2;
pub(super) const DESTROY: u32 = 38;

/// Bytes of `struct fuse_in_header`; and where it names a node, of which 1 is the root.
pub(super) const HEADER_BYTES: usize = 40;
const NODE: usize = 16;
const ROOT: u8 = 1;
/// Bytes of `struct fuse_forget_in`.
const FORGET_BYTES: usize = 8;
/// The id of the request that is answered. FUSE_INIT had another.
const ASKED: u64 = 2;
/// More than the answers have.
const ANSWER_BYTES: usize = 256;

/// How often it is looked whether the session has ended without an answer, in milliseconds.
const LOOK_MILLISECONDS: u16 = 20;

/// See the module.
pub(super) struct StandIn {
    socket: OwnedFd,
    threads: usize,
}

impl StandIn {
    /// One that says what was agreed on to a session of up to `threads` threads, and what that hears it from.
    pub(super) fn new(negotiated: Negotiated, threads: usize) -> io::Result<(Self, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        let stand_in = Self { socket: ours, threads };
        stand_in.say(&negotiated.request())?;
        Ok((stand_in, theirs))
    }

    /// Waits until a thread of the session answers; an error if `is_over` says before that there is none.
    pub(super) fn wait_for_answer(&self, is_over: impl Fn() -> bool) -> io::Result<()> {
        self.say(&request(STATFS, ASKED, 0))?;
        let mut answer = [0; ANSWER_BYTES];
        loop {
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], LOOK_MILLISECONDS) {
                Ok(0) if is_over() => return Err(io::Error::other("none of its threads could be started")),
                Ok(0) | Err(Errno::EINTR) => continue,
                result => result?,
            };
            let size = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            if id(&answer[..size]) == Some(ASKED) {
                return Ok(());
            }
        }
    }

    /// Has threads that still listen to the socket go where the session hears the kernel now: with a request that has no answer.
    pub(super) fn step_aside(&self) {
        self.say_to_all(&request(FORGET, ASKED, FORGET_BYTES));
    }

    /// Ends the session's threads.
    pub(super) fn dismiss(&self) {
        self.say_to_all(&request(DESTROY, ASKED, 0));
    }

    /// Each thread takes one.
    fn say_to_all(&self, request: &[u8]) {
        // If the other end is gone, so are those who listened.
        let _ = (0..self.threads).try_for_each(|_| self.say(request));
    }

    fn say(&self, request: &[u8]) -> io::Result<()> {
        send(self.socket.as_raw_fd(), request, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }
}

/// A request about the root, whose arguments are so many zeros.
pub(super) fn request(opcode: u32, id: u64, arguments: usize) -> Vec<u8> {
    let mut request = vec![0; HEADER_BYTES + arguments];
    let length = u32::try_from(request.len()).unwrap_or(u32::MAX);
    request[..4].copy_from_slice(&length.to_ne_bytes());
    request[4..8].copy_from_slice(&opcode.to_ne_bytes());
    request[ID].copy_from_slice(&id.to_ne_bytes());
    request[NODE] = ROOT;
    request
}
