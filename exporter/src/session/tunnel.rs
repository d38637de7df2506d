//! Byte messages as a byte stream: what carries an inner HTTP/2 connection over a stream of the outer one.
//!
//! Each direction is a sequence of gRPC messages `BytesMessage { bytes data = 1 }`; where one message ends and the next
//! begins means nothing.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::grpc::frame::PREFIX_BYTES;
use crate::grpc::wire::varint;
use crate::grpc::{Code, Status};
use crate::http2::pump;

/// Tag of `data`: field 1, length-delimited.
const DATA_TAG: u8 = 0x0a;

/// The most that is put into one message. BuildKit reads them into memory whole, and takes up to 16 MiB.
const MESSAGE_BYTES: usize = 128 << 10;

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
    /// An encoded message of which the window has not taken all yet.
    unsent: Bytes,
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
        let (received, unsent) = (Bytes::new(), Bytes::new());
        Self { receive, decoder: Decoder::default(), received, send, unsent, end, ended: false }
    }

    /// Waits until no part of a message is left unsent.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            ready!(pump::poll_send(&mut self.send, &mut self.unsent, cx))
                .map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = out.filled().len();
        loop {
            this.decoder.decode(&mut this.received, out)?;
            if out.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            match ready!(this.receive.poll_data(cx)) {
                Some(Ok(data)) => {
                    this.receive.flow_control().release_capacity(data.len()).map_err(io::Error::other)?;
                    this.received = data;
                }
                Some(Err(error)) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, error)));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
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
        ready!(self.poll_drain(cx))?;
        let (message, taken) = encode(slices);
        self.unsent = message;
        // The message is ours now; what the window does not take yet goes with the next write or flush.
        if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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

/// One message of as much of `slices` as fits, and how much that is.
fn encode(slices: &[IoSlice<'_>]) -> (Bytes, usize) {
    let total: usize = slices.iter().map(|slice| slice.len()).sum();
    let taken = total.min(MESSAGE_BYTES);
    if taken == 0 {
        return (Bytes::new(), 0);
    }
    let mut head = vec![DATA_TAG];
    varint::encode(taken as u64, &mut head);
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + head.len() + taken);
    let length = u32::try_from(head.len() + taken).expect("a message here is far smaller than 4 GiB");
    out.extend_from_slice(&[0]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&head);
    let mut left = taken;
    for slice in slices {
        let part = slice.len().min(left);
        out.extend_from_slice(&slice[..part]);
        left -= part;
    }
    (out.freeze(), taken)
}

/// Takes the data out of messages, however they are cut.
#[derive(Debug, Default)]
struct Decoder {
    /// The part of a head (prefix, tag, length) that has come.
    head: Vec<u8>,
    /// Bytes of data that are still to come in this message.
    data: usize,
}

impl Decoder {
    /// Moves data from `input` to `out` until one of them is exhausted.
    fn decode(&mut self, input: &mut Bytes, out: &mut ReadBuf<'_>) -> io::Result<()> {
        while !input.is_empty() && out.remaining() > 0 {
            if self.data > 0 {
                let part = self.data.min(input.len()).min(out.remaining());
                out.put_slice(&input[..part]);
                input.advance(part);
                self.data -= part;
            } else {
                self.head.push(input.get_u8());
                self.try_head()?;
            }
        }
        Ok(())
    }

    /// Begins the data if the head is complete.
    fn try_head(&mut self) -> io::Result<()> {
        let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, format!("session: {reason}"));
        let Some((prefix, inner)) = self.head.split_first_chunk::<PREFIX_BYTES>() else { return Ok(()) };
        let [compressed, length @ ..] = *prefix;
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 {
            return Err(invalid("compressed messages are not supported"));
        }
        if length == 0 {
            self.head.clear();
            return Ok(());
        }
        let Some((&tag, number)) = inner.split_first() else { return Ok(()) };
        if tag != DATA_TAG {
            return Err(invalid("expected a BytesMessage with data alone"));
        }
        match varint::decode(number) {
            Some((data, size)) if data.checked_add(1 + size as u64) == Some(length as u64) => {
                self.data = length - 1 - size;
                self.head.clear();
                Ok(())
            }
            None if number.len() < varint::LIMIT_BYTES => Ok(()),
            _ => Err(invalid("the data of a BytesMessage is not as long as the message says")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_all(stream: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let mut decoder = Decoder::default();
        let mut found = Vec::new();
        for data in stream.chunks(piece) {
            let mut input = Bytes::copy_from_slice(data);
            while !input.is_empty() {
                let mut space = [0; 7];
                let mut out = ReadBuf::new(&mut space);
                decoder.decode(&mut input, &mut out)?;
                found.extend_from_slice(out.filled());
            }
        }
        Ok(found)
    }

    #[test]
    fn bytes_come_out_as_they_went_in_however_they_are_cut() {
        let data: Vec<u8> = (0..1000u32).map(|number| number as u8).collect();
        let mut stream = Vec::new();
        for part in data.chunks(300) {
            let (left, right) = part.split_at(part.len() / 3);
            let (message, taken) = encode(&[IoSlice::new(left), IoSlice::new(right)]);
            assert_eq!(taken, part.len());
            stream.extend_from_slice(&message);
            // An empty message between two others means nothing.
            stream.extend_from_slice(&[0; PREFIX_BYTES]);
        }
        for piece in [1, 2, 5, 8, 100, stream.len()] {
            assert_eq!(decode_all(&stream, piece).unwrap(), data);
        }
    }

    #[test]
    fn a_long_write_is_taken_in_parts() {
        let data = vec![1; MESSAGE_BYTES * 2];
        assert_eq!(encode(&[IoSlice::new(&data), IoSlice::new(&data)]).1, MESSAGE_BYTES);
    }

    #[test]
    fn what_is_no_byte_message_is_refused() {
        for stream in [
            &[1, 0, 0, 0, 3, 0x0a, 1, 0][..],
            &[0, 0, 0, 0, 3, 0x12, 1, 0],
            &[0, 0, 0, 0, 3, 0x0a, 9, 0],
            &[0, 0, 0, 0, 20, 0x0a, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255],
        ] {
            assert!(decode_all(stream, 3).is_err(), "{stream:?}");
        }
    }
}
