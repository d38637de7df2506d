//! Between the kernel and a session whose requests are noted: what the kernel sends goes to the [journal](super::journal), and
//! over a socket to the session; its answers come back over it, and go to the kernel before they are struck off.
//!
//! It costs two more hand-overs and copies for each request, and two threads a mount.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::sockopt::SndBufForce;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, sendmsg, setsockopt, shutdown, socketpair,
};
use nix::sys::uio::readv;

use super::connection::FuseConnection;
use super::journal::{Journal, SLOT_BYTES, id};
use super::stand_in::{DESTROY, FORGET, HEADER_BYTES, request};
use crate::sys::{DescriptorPlace, Pages, replace};

/// The largest read where answers go over a socket, which wants their pages in one piece: what kernels ask for by default.
pub(super) const READ_LIMIT_BYTES: u32 = 128 << 10;
/// Answers that may be on their way in a socket: some of the largest, of sessions too that agreed on more.
const SOCKET_BYTES: usize = 4 << 20;
/// The largest answer, and the kernel's least room for a request: a megabyte and what goes before.
const MESSAGE_BYTES: usize = (1 << 20) + 8192;

/// Opcodes of `linux/fuse.h` whose requests nobody waits for, beside those that have a name already.
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// Puts a relay before a session that hears what is at `place` and has `threads` threads; `pending` is what it is to hear first.
pub(super) fn begin(
    connection: &Arc<FuseConnection>,
    (journal, pages): (Journal, Pages),
    pending: Vec<Vec<u8>>,
    place: DescriptorPlace,
    threads: usize,
) -> io::Result<()> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    setsockopt(&theirs, SndBufForce, &SOCKET_BYTES)?;
    replace(theirs.as_fd(), place)?;
    let relay = Arc::new(Relay { connection: Arc::clone(connection), journal, socket: ours });
    let back = Arc::clone(&relay);
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    thread("fuse answers").spawn(move || back.bring_back())?;
    let taking = Arc::clone(&relay);
    let begun = thread("fuse requests").spawn(move || taking.take(pages, &pending, threads));
    if begun.is_err() {
        // The journal stays, for another attempt.
        let _ = shutdown(relay.socket.as_raw_fd(), Shutdown::Both);
    }
    begun.map(drop)
}

struct Relay {
    connection: Arc<FuseConnection>,
    journal: Journal,
    /// The session has the other end.
    socket: OwnedFd,
}

impl Relay {
    fn take(&self, mut pages: Pages, pending: &[Vec<u8>], threads: usize) {
        if !pending.is_empty() {
            let mountpoint = self.connection.mountpoint().display();
            tracing::info!(%mountpoint, requests = pending.len(), "answering what the last daemon had not");
        }
        // What kernels send that is longer than a slot has no answer, so its rest need not outlive us.
        let mut rest = vec![0; MESSAGE_BYTES];
        let mut take_all = || -> Result<(), Errno> {
            pending.iter().try_for_each(|request| self.send(&[IoSlice::new(request)]))?;
            while let Some(slot) = self.journal.free_slot() {
                self.take_one(&mut pages, slot, &mut rest)?;
            }
            Ok(())
        };
        if let Err(errno) = take_all()
            && !matches!(errno, Errno::ENODEV | Errno::EPIPE)
        {
            let mountpoint = self.connection.mountpoint().display();
            tracing::error!(%mountpoint, error = %io::Error::from(errno), "cannot take requests any more");
        }
        self.end(threads);
    }

    fn take_one(&self, pages: &mut Pages, slot: usize, rest: &mut [u8]) -> Result<(), Errno> {
        let place = pages.part(Journal::range(slot));
        let taken = readv(&*self.connection, &mut [IoSliceMut::new(place), IoSliceMut::new(rest)]);
        let size = match taken {
            // Interrupted, or given up by who asked.
            Err(Errno::EINTR | Errno::ENOENT | Errno::EAGAIN) => 0,
            result => result?,
        };
        if size < HEADER_BYTES {
            self.journal.give_back(slot);
            return Ok(());
        }
        let opcode = place[4..8].try_into().map_or(0, u32::from_ne_bytes);
        let is_answered = !matches!(opcode, FORGET | INTERRUPT | DESTROY | BATCH_FORGET);
        if let (true, Some(id)) = (is_answered, id(place)) {
            self.journal.taken(slot, id);
        }
        let (first, further) = (size.min(SLOT_BYTES), size.saturating_sub(SLOT_BYTES));
        let sent = self.send(&[IoSlice::new(&place[..first]), IoSlice::new(&rest[..further])]);
        if !is_answered {
            self.journal.give_back(slot);
        }
        sent
    }

    fn send(&self, parts: &[IoSlice<'_>]) -> Result<(), Errno> {
        loop {
            match sendmsg::<()>(self.socket.as_raw_fd(), parts, &[], MsgFlags::MSG_NOSIGNAL, None) {
                Err(Errno::EINTR) => {}
                result => return result.map(drop),
            }
        }
    }

    fn bring_back(&self) {
        let mut answer = vec![0; MESSAGE_BYTES];
        loop {
            let size = match recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                Ok(0) | Err(_) => return,
                Ok(size) => size,
            };
            let told = loop {
                match nix::unistd::write(&*self.connection, &answer[..size]) {
                    Err(Errno::EINTR) => {}
                    result => break result,
                }
            };
            // ENOENT: nobody waits for it any more.
            if let Err(errno) = told
                && !matches!(errno, Errno::ENOENT | Errno::ENODEV)
            {
                let mountpoint = self.connection.mountpoint().display();
                tracing::warn!(%mountpoint, error = %io::Error::from(errno), "the kernel does not take an answer");
            }
            if let Some(id) = answer.get(..size).and_then(id) {
                self.journal.answered(id);
            }
        }
    }

    /// The mount is gone: the session's threads are told so one by one.
    fn end(&self, threads: usize) {
        let destroy = request(DESTROY, u64::MAX, 0);
        for _ in 0..threads {
            if self.send(&[IoSlice::new(&destroy)]).is_err() {
                break;
            }
        }
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        self.journal.close();
    }
}
