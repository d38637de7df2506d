//! Bodies of answers: nothing, bytes in memory, a file that is read ahead of the network, or what comes from another registry.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use hyper::body::{Frame, SizeHint};
use tokio::task::JoinHandle;

use crate::client::Error;

/// How much of a file is read at once: large enough that system calls and thread changes do not show at
/// memory speed, small enough that a hundred slow readers cost little memory (two of these each).
const READ_BYTES: usize = 512 << 10;

/// An answer's body.
pub(super) enum Body {
    Bytes(Bytes),
    File(FileBody),
    Fetched(FetchedBody),
}

/// So many bytes of a blob as they come from another registry.
pub(super) struct FetchedBody {
    pieces: BoxStream<'static, Result<Bytes, Error>>,
    /// What has not been handed to the network yet.
    unsent: u64,
    /// The last piece, kept back until `pieces` ends: a whole blob ends well only with its digest.
    last: Option<Bytes>,
}

impl FetchedBody {
    pub(super) fn new(pieces: BoxStream<'static, Result<Bytes, Error>>, len: u64) -> Self {
        Self { pieces, unsent: len, last: None }
    }

    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        while self.unsent > 0 {
            let Some(piece) = ready!(self.pieces.poll_next_unpin(context)) else {
                self.unsent = 0;
                // Whoever asked was told how many there are.
                let last = self.last.take().ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
                return Poll::Ready(Some(last));
            };
            let piece = piece.map_err(io::Error::other)?;
            let kept = self.last.as_ref().map_or(0, Bytes::len);
            let left = self.unsent.checked_sub((kept + piece.len()) as u64);
            match left.ok_or(io::ErrorKind::InvalidData)? {
                0 if self.last.is_none() => self.last = Some(piece),
                0 => {}
                left => {
                    self.unsent = left;
                    return Poll::Ready(Some(Ok(piece)));
                }
            }
        }
        Poll::Ready(None)
    }
}

/// A part of a file. The next read runs while the one before is being sent.
pub(super) struct FileBody {
    file: Arc<File>,
    /// What has not been asked of the disk yet.
    offset: u64,
    unread: u64,
    /// What has not been handed to the network yet.
    unsent: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl FileBody {
    pub(super) fn new(file: Arc<File>, offset: u64, len: u64) -> Self {
        Self { file, offset, unread: len, unsent: len, reading: None }
    }

    fn read_ahead(&mut self) {
        let size = usize::try_from(self.unread).unwrap_or(usize::MAX).min(READ_BYTES);
        let (file, offset) = (self.file.clone(), self.offset);
        self.offset += size as u64;
        self.unread -= size as u64;
        self.reading = Some(tokio::task::spawn_blocking(move || read_at(&file, offset, size)));
    }
}

/// `size` bytes of `file` from `offset` on; fewer in the file is an error.
pub(super) fn read_at(file: &File, offset: u64, size: usize) -> io::Result<Bytes> {
    let mut buffer = vec![0; size];
    file.read_exact_at(&mut buffer, offset)?;
    Ok(buffer.into())
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Bytes(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::File(body) => {
                if body.unsent == 0 {
                    return Poll::Ready(None);
                }
                if body.reading.is_none() {
                    body.read_ahead();
                }
                let Some(reading) = &mut body.reading else { return Poll::Ready(None) };
                let bytes = ready!(Pin::new(reading).poll(context)).map_err(io::Error::other)??;
                body.unsent -= bytes.len() as u64;
                body.reading = None;
                if body.unread > 0 {
                    body.read_ahead();
                }
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Fetched(body) => body.poll_piece(context).map_ok(Frame::data),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.size_hint().exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(body) => body.unsent,
            Self::Fetched(body) => body.unsent,
        })
    }
}
