//! A socket that is read and written in large pieces.
//!
//! gRPC's frames are of at most 16 KiB, and h2 reads and writes each by a system call of its own, which also wakes who is at the other end.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::UnixStream;

use super::deferral::Deferral;

/// What is read or written at once.
const PIECE_BYTES: usize = 128 << 10;

/// `stream`, for an HTTP/2 connection to run over.
pub(crate) fn gathered(stream: UnixStream) -> BufReader<Gather<UnixStream>> {
    BufReader::with_capacity(PIECE_BYTES, Gather::new(stream))
}

/// Writes what was written to it when that was flushed a turn ago, or is enough.
pub(crate) struct Gather<S> {
    stream: S,
    unsent: BytesMut,
    deferral: Deferral,
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    fn new(stream: S) -> Self {
        Self { stream, unsent: BytesMut::new(), deferral: Deferral::default() }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.unsent))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(sent);
        }
        self.deferral.sent();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, out);
        if read.is_pending()
            && self.deferral.is_due()
            && let Poll::Ready(Err(error)) = self.poll_send(cx)
        {
            return Poll::Ready(Err(error));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.unsent.len() >= PIECE_BYTES {
            ready!(self.poll_send(cx))?;
        }
        let before = self.unsent.len();
        for slice in slices {
            let room = PIECE_BYTES - self.unsent.len();
            self.unsent.extend_from_slice(&slice[..slice.len().min(room)]);
        }
        self.deferral.written();
        Poll::Ready(Ok(self.unsent.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.unsent.is_empty() && self.deferral.waits(cx) {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn all_arrives_in_order_however_it_was_written() {
        let (near, mut far) = tokio::io::duplex(10_000);
        let mut near = Gather::new(near);
        let pieces = (0..400_usize).map(|number| vec![number as u8; number * 7]).collect::<Vec<_>>();
        let sent = pieces.concat();
        let writing = async {
            for piece in &pieces {
                near.write_all(piece).await.unwrap();
                near.flush().await.unwrap();
            }
            near.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let both = async { tokio::join!(writing, far.read_to_end(&mut received)) };
        timeout(DEADLINE, both).await.unwrap().1.unwrap();
        assert!(received == sent, "{} bytes of {}", received.len(), sent.len());
    }

    #[tokio::test]
    async fn who_waits_for_an_answer_has_sent_the_question() {
        let (near, mut far) = tokio::io::duplex(10_000);
        let mut near = Gather::new(near);
        let answering = async {
            far.read_exact(&mut [0; 8]).await.unwrap();
            far.write_all(b"answer").await.unwrap();
        };
        let asking = async {
            near.write_all(b"question").await.unwrap();
            near.flush().await.unwrap();
            near.read_exact(&mut [0; 6]).await.unwrap();
        };
        timeout(DEADLINE, async { tokio::join!(asking, answering) }).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_flushed_twice_is_sent() {
        let (near, mut far) = tokio::io::duplex(10_000);
        let mut near = Gather::new(near);
        near.write_all(b"all").await.unwrap();
        near.flush().await.unwrap();
        near.flush().await.unwrap();
        timeout(DEADLINE, far.read_exact(&mut [0; 3])).await.unwrap().unwrap();
    }
}
