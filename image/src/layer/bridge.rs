//! Between asynchronous tasks and the blocking thread that builds: channels that look like files.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::mpsc;

/// Writes are gathered to this size, so that the other side wakes up seldom.
const PIECE_BYTES: usize = 256 << 10;

/// Reads what is sent; an empty message is the end, a closed channel before it an error, so that input that broke off is
/// never taken for complete.
pub(crate) struct InputReader {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
    ended: bool,
}

impl InputReader {
    pub(crate) fn new(receiver: mpsc::Receiver<Bytes>) -> Self {
        Self { receiver, current: Bytes::new(), ended: false }
    }
}

impl Read for InputReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            let broken = || io::Error::new(io::ErrorKind::ConnectionAborted, "the layer's stream broke off");
            self.current = self.receiver.blocking_recv().ok_or_else(broken)?;
            self.ended = self.current.is_empty();
        }
        let length = out.len().min(self.current.len());
        out[..length].copy_from_slice(&self.current[..length]);
        self.current.advance(length);
        Ok(length)
    }
}

/// Sends what is written, in pieces; [`Write::flush`] sends the last.
pub(crate) struct OutputWriter {
    sender: mpsc::Sender<Bytes>,
    buffer: BytesMut,
}

impl OutputWriter {
    pub(crate) fn new(sender: mpsc::Sender<Bytes>) -> Self {
        Self { sender, buffer: BytesMut::new() }
    }
}

impl Write for OutputWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        let closed = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the upload has ended");
        self.sender.blocking_send(piece).map_err(closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_ends_at_the_end_mark_and_fails_without_it() {
        let (sender, receiver) = mpsc::channel(4);
        for piece in [&b"ab"[..], b"c", b""] {
            sender.try_send(Bytes::from_static(piece)).unwrap();
        }
        let mut all = Vec::new();
        InputReader::new(receiver).read_to_end(&mut all).unwrap();
        assert_eq!(all, b"abc");

        let (sender, receiver) = mpsc::channel(4);
        sender.try_send(Bytes::from_static(b"ab")).unwrap();
        drop(sender);
        let error = InputReader::new(receiver).read_to_end(&mut all).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[test]
    fn a_writer_sends_all_and_fails_when_nobody_takes_it() {
        let (sender, mut receiver) = mpsc::channel(8);
        let mut writer = OutputWriter::new(sender);
        writer.write_all(&vec![1; PIECE_BYTES + 10]).unwrap();
        writer.write_all(&[2; 10]).unwrap();
        writer.flush().unwrap();
        let mut received = Vec::new();
        while let Ok(piece) = receiver.try_recv() {
            received.extend_from_slice(&piece);
        }
        assert_eq!(received.len(), PIECE_BYTES + 20);
        drop(receiver);
        writer.write_all(b"x").unwrap();
        assert_eq!(writer.flush().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
