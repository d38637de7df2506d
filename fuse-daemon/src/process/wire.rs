//! Messages over a pair of sockets: a length of four bytes, little-endian, and the text; a descriptor comes with the first
//! byte of its message.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;

/// What is read at once.
const READ_BYTES: usize = 64 << 10;

/// Bytes that may wait for the other end: one that takes nothing for so long does not work.
const QUEUE_LIMIT: usize = 128 << 20;

/// The end that messages are sent by. Who sends never waits: what the socket does not take is sent by [`pump`](Self::pump).
pub(super) struct Sender {
    socket: Arc<UnixStream>,
    queue: Mutex<SendQueue>,
    filled: Condvar,
}

#[derive(Default)]
struct SendQueue {
    waiting: VecDeque<Packet>,
    bytes: usize,
    closed: bool,
}

/// A message, or what is left of it.
struct Packet {
    bytes: Vec<u8>,
    sent: usize,
    descriptor: Option<OwnedFd>,
}

impl Sender {
    pub(super) fn new(socket: Arc<UnixStream>) -> Self {
        Self { socket, queue: Mutex::default(), filled: Condvar::new() }
    }

    /// Sends a message. That the other end is gone is told by what is received from it, or is not.
    pub(super) fn send(&self, message: &impl Serialize, descriptor: Option<OwnedFd>) {
        let mut bytes = vec![0; 4];
        if let Err(error) = serde_json::to_writer(&mut bytes, message) {
            return tracing::error!(%error, "a message cannot be written");
        }
        let length = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        let mut packet = Packet { bytes, sent: 0, descriptor };
        let mut queue = self.lock();
        if queue.closed {
            return;
        }
        if queue.waiting.is_empty() {
            match packet.send(&self.socket, SendFlags::DONTWAIT) {
                Ok(true) => return,
                Ok(false) => {}
                Err(_) => return self.close_locked(&mut queue),
            }
        }
        queue.bytes += packet.bytes.len();
        queue.waiting.push_back(packet);
        if queue.bytes > QUEUE_LIMIT {
            self.close_locked(&mut queue);
        }
        drop(queue);
        self.filled.notify_one();
    }

    /// Sends what waits, until the connection is closed: to be run by a thread of its own.
    pub(super) fn pump(&self) {
        loop {
            let mut queue = self.lock();
            let mut packet = loop {
                if queue.closed {
                    return;
                }
                // Left in the queue while it is sent, so that no other message overtakes it.
                if let Some(first) = queue.waiting.front_mut() {
                    break Packet { bytes: std::mem::take(&mut first.bytes), ..first.rest() };
                }
                queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            };
            drop(queue);
            let mut sent = Ok(false);
            while matches!(sent, Ok(false)) {
                sent = packet.send(&self.socket, SendFlags::empty());
            }
            let mut queue = self.lock();
            queue.bytes = queue.bytes.saturating_sub(packet.bytes.len());
            queue.waiting.pop_front();
            if sent.is_err() {
                return self.close_locked(&mut queue);
            }
        }
    }

    /// Ends the connection for both ends.
    pub(super) fn close(&self) {
        self.close_locked(&mut self.lock());
    }

    fn close_locked(&self, queue: &mut SendQueue) {
        queue.closed = true;
        queue.waiting.clear();
        let _ = self.socket.shutdown(Shutdown::Both);
        self.filled.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, SendQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Packet {
    fn rest(&mut self) -> Self {
        Self { bytes: Vec::new(), sent: self.sent, descriptor: self.descriptor.take() }
    }

    /// Sends as much as goes; whether that was all.
    fn send(&mut self, socket: &UnixStream, flags: SendFlags) -> io::Result<bool> {
        while let Some(left) = self.bytes.get(self.sent..).filter(|left| !left.is_empty()) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let descriptors = self.descriptor.as_ref().map(AsFd::as_fd);
            if descriptors.is_some() {
                // The space is for one.
                ancillary.push(SendAncillaryMessage::ScmRights(descriptors.as_slice()));
            }
            match sendmsg(socket, &[IoSlice::new(left)], &mut ancillary, flags | SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    self.sent += sent;
                    self.descriptor = None;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

/// The end that messages are received by.
pub(super) struct Receiver {
    socket: Arc<UnixStream>,
    buffer: Vec<u8>,
    /// Where in the buffer the next message begins.
    at: usize,
    limit: usize,
    /// Descriptors that came, in order; `None` where none are taken, and the kernel closes them.
    descriptors: Option<VecDeque<OwnedFd>>,
}

impl Receiver {
    /// Takes messages of up to `limit` bytes; with descriptors, if `descriptors`.
    pub(super) fn new(socket: Arc<UnixStream>, limit: usize, descriptors: bool) -> Self {
        Self { socket, buffer: Vec::new(), at: 0, limit, descriptors: descriptors.then(VecDeque::new) }
    }

    /// The next message; `None` at the end of the connection. One that is too large is an error of this kind:
    /// [`io::ErrorKind::FileTooLarge`].
    pub(super) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            if self.receive()? == 0 {
                return Ok(None);
            }
        }
    }

    /// The descriptor that came with a message which needs one: they come in the same order.
    pub(super) fn descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.as_mut()?.pop_front()
    }

    fn take(&mut self) -> io::Result<Option<Vec<u8>>> {
        let left = self.buffer.get(self.at..).unwrap_or_default();
        let Some((length, rest)) = left.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > self.limit {
            let error = format!("a message of {length} bytes; at most {} are taken", self.limit);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, error));
        }
        let Some(message) = rest.get(..length).map(<[u8]>::to_vec) else { return Ok(None) };
        self.at += 4 + length;
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.buffer.shrink_to(READ_BYTES);
            self.at = 0;
        }
        Ok(Some(message))
    }

    /// Receives once; how many bytes. The buffer grows with what comes, not with what is claimed.
    fn receive(&mut self) -> io::Result<usize> {
        self.buffer.drain(..std::mem::take(&mut self.at));
        let length = self.buffer.len();
        self.buffer.resize(length + READ_BYTES, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut none = [];
        let mut ancillary = match self.descriptors {
            Some(_) => RecvAncillaryBuffer::new(&mut space),
            None => RecvAncillaryBuffer::new(&mut none),
        };
        let received = loop {
            let mut buffers = [IoSliceMut::new(&mut self.buffer[length..])];
            match recvmsg(&*self.socket, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                received => break received,
            }
        };
        self.buffer.truncate(length + received.as_ref().map_or(0, |received| received.bytes));
        if let Some(descriptors) = &mut self.descriptors {
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    descriptors.extend(received);
                }
            }
        }
        match received {
            Ok(received) => Ok(received.bytes),
            Err(rustix::io::Errno::CONNRESET) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests;
