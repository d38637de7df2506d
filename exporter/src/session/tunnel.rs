//! Byte messages as a byte stream: what carries an inner HTTP/2 connection over a stream of the outer one.
//!
//! Each direction is a sequence of gRPC messages ([`messages`]); where one ends and the next begins means nothing.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::grpc::{Code, Status};
use crate::http2::deferral::Deferral;
use crate::http2::pump;

mod messages;

use messages::{Decoder, Encoder};

/// How our direction ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// We are the client of the outer stream.
    Data,
    /// We are its server and owe a status.
    Trailers,
}

/// A byte stream over a stream of byte messages.
pub(crate) struct Tunnel {
    receive: RecvStream,
    decoder: Decoder,
    /// DATA frames that have come but are not taken yet.
    received: Bytes,
    send: SendStream<Bytes>,
    encoder: Encoder,
    /// Messages of which the window has not taken all yet.
    unsent: Bytes,
    deferral: Deferral,
    end: End,
    ended: bool,
}

impl Tunnel {
    /// Over a stream that we opened.
    pub(crate) fn to_server(receive: RecvStream, send: SendStream<Bytes>) -> Self {
        Self::new(receive, send, End::Data)
    }

    /// Over a stream that was opened to us.
    pub(crate) fn to_client(receive: RecvStream, send: SendStream<Bytes>) -> Self {
        Self::new(receive, send, End::Trailers)
    }

    fn new(receive: RecvStream, send: SendStream<Bytes>, end: End) -> Self {
        Self {
            receive,
            decoder: Decoder::default(),
            received: Bytes::new(),
            send,
            encoder: Encoder::default(),
            unsent: Bytes::new(),
            deferral: Deferral::default(),
            end,
            ended: false,
        }
    }

    /// Waits until nothing that was written is left unsent.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while !self.unsent.is_empty() {
                ready!(pump::poll_send(&mut self.send, &mut self.unsent, cx))
                    .map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error))?;
            }
            if self.encoder.is_empty() {
                self.deferral.sent();
                return Poll::Ready(Ok(()));
            }
            self.unsent = self.encoder.take();
        }
    }

    /// Takes what has come.
    fn poll_receive(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        loop {
            self.decoder.decode(&mut self.received, out)?;
            if out.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            match ready!(self.receive.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.receive.flow_control().release_capacity(data.len()).map_err(io::Error::other)?;
                    self.received = data;
                }
                Some(Err(error)) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, error)));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let received = self.poll_receive(cx, out);
        if received.is_pending()
            && self.deferral.is_due()
            && let Poll::Ready(Err(error)) = self.poll_drain(cx)
        {
            return Poll::Ready(Err(error));
        }
        received
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.encoder.is_full() {
            ready!(self.poll_drain(cx))?;
        }
        let taken = self.encoder.write(slices);
        self.deferral.written();
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let is_unsent = !self.unsent.is_empty() || !self.encoder.is_empty();
        if is_unsent && self.deferral.waits(cx) {
            return Poll::Ready(Ok(()));
        }
        self.poll_drain(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        if !self.ended {
            self.ended = true;
            match self.end {
                End::Data => self.send.send_data(Bytes::new(), true),
                End::Trailers => self.send.send_trailers(Status::new(Code::Ok, "").trailers()),
            }
            .map_err(io::Error::other)?;
        }
        Poll::Ready(Ok(()))
    }
}
