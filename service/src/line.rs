//! Lines over a local socket, with a descriptor where one belongs to them: what control sockets speak.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// What is read at once.
const READ_BYTES: usize = 16 << 10;

/// Reads up to the end of a line, of the stream, or of `limit` bytes, whichever comes first; and the descriptor that came with
/// it. Memory grows with what arrives. Cancelled, it loses what it has read.
///
/// # Errors
///
/// The connection broke.
pub async fn read_line(stream: &UnixStream, limit: usize) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let (mut line, mut descriptor) = (Vec::new(), None);
    while line.last() != Some(&b'\n') && line.len() < limit {
        stream.readable().await?;
        match stream.try_io(Interest::READABLE, || receive(stream.as_fd(), &mut line, &mut descriptor)) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok((line, descriptor))
}

fn receive(
    socket: BorrowedFd<'_>,
    line: &mut Vec<u8>,
    descriptor: &mut Option<OwnedFd>,
) -> io::Result<usize> {
    let mut bytes = [0; READ_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            // There is room for one; the kernel closes others.
            *descriptor = descriptors.last().or(descriptor.take());
        }
    }
    line.extend_from_slice(&bytes[..received.bytes]);
    Ok(received.bytes)
}

/// Writes a line, and a descriptor with its beginning.
///
/// # Errors
///
/// The connection broke.
pub async fn write_line(
    stream: &UnixStream,
    mut line: &[u8],
    mut descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    while !line.is_empty() {
        stream.writable().await?;
        match stream.try_io(Interest::WRITABLE, || send(stream.as_fd(), line, descriptor)) {
            Ok(sent) => {
                descriptor = None;
                line = line.get(sent..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn send(socket: BorrowedFd<'_>, line: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() {
        // The space is for one.
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    Ok(sendmsg(socket, &[IoSlice::new(line)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;

    #[tokio::test]
    async fn a_line_arrives_with_its_descriptor_however_long_it_is() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        let mut line = vec![b'x'; 1 << 20];
        line.push(b'\n');
        let (sent, received) =
            tokio::join!(write_line(&ours, &line, Some(file.as_fd())), read_line(&theirs, 2 << 20));
        sent.unwrap();
        let (received, descriptor) = received.unwrap();
        assert!(received == line);
        let (mut same, mut text) = (File::from(descriptor.unwrap()), String::new());
        same.rewind().unwrap();
        same.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
    }

    #[tokio::test]
    async fn a_line_without_a_descriptor_has_none_and_an_end_is_an_end() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        write_line(&ours, b"line\n", None).await.unwrap();
        assert!(matches!(read_line(&theirs, 100).await.unwrap(), (line, None) if line == b"line\n"));
        write_line(&ours, b"half", None).await.unwrap();
        drop(ours);
        assert!(matches!(read_line(&theirs, 100).await.unwrap(), (line, None) if line == b"half"));
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_read_up_to_the_limit() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let line = vec![b'x'; READ_BYTES + 100];
        write_line(&ours, &line, None).await.unwrap();
        let (read, _) = read_line(&theirs, READ_BYTES).await.unwrap();
        assert!((READ_BYTES..2 * READ_BYTES).contains(&read.len()), "{}", read.len());
    }
}
