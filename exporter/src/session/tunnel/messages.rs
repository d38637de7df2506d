//! The messages `BytesMessage { bytes data = 1 }` of a tunnel.

use std::io::{self, IoSlice};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::ReadBuf;

use crate::grpc::frame::PREFIX_BYTES;
use crate::grpc::wire::varint;

/// Tag of `data`: field 1, length-delimited.
const DATA_TAG: u8 = 0x0a;

/// The most that is put into one message, with its head: gRPC's DATA frames are as large at most. BuildKit takes a message that is
/// one frame as it is, and copies one that is cut into several.
const MESSAGE_BYTES: usize = 16 << 10;

/// What precedes the data of a message: the length of so much takes two bytes at most.
const HEAD_BYTES: usize = PREFIX_BYTES + 1 + 2;

/// How much is written before it is sent without a flush, in whole messages.
const GATHERED_BYTES: usize = 8 * MESSAGE_BYTES;

/// Puts data into messages: all are as large as they may be, but for the last that is taken.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    messages: BytesMut,
    /// Where the last one begins, if there is room in it.
    open: Option<usize>,
}

impl Encoder {
    /// Whether there is nothing to take.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether it takes no more before what it has is taken.
    pub(super) fn is_full(&self) -> bool {
        self.open.is_none() && self.messages.len() >= GATHERED_BYTES
    }

    /// Adds as much of `slices` as there is room for, and says how much that is.
    pub(super) fn write(&mut self, slices: &[IoSlice<'_>]) -> usize {
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        if offered >= MESSAGE_BYTES / 2 {
            // More like it follows: a buffer that grows with each piece is copied again and again.
            self.messages.reserve(GATHERED_BYTES.saturating_sub(self.messages.len()));
        }
        let mut taken = 0;
        for slice in slices {
            let mut rest = &slice[..];
            while !rest.is_empty() && !self.is_full() {
                let begin = self.begin();
                let room = begin + MESSAGE_BYTES - self.messages.len();
                let (part, others) = rest.split_at(room.min(rest.len()));
                self.messages.extend_from_slice(part);
                taken += part.len();
                rest = others;
                if part.len() == room {
                    self.close();
                }
            }
        }
        taken
    }

    /// Where the message begins that is added to.
    fn begin(&mut self) -> usize {
        *self.open.get_or_insert_with(|| {
            let begin = self.messages.len();
            self.messages.extend_from_slice(&[0; HEAD_BYTES]);
            begin
        })
    }

    /// Completes the last message: its head says how long it is.
    fn close(&mut self) {
        let Some(begin) = self.open.take() else { return };
        let data = self.messages.len() - begin - HEAD_BYTES;
        let mut inner = vec![DATA_TAG];
        varint::encode(data as u64, &mut inner);
        let length = u32::try_from(inner.len() + data).expect("a message here is far smaller than 4 GiB");
        let head = [&[0][..], &length.to_be_bytes(), &inner].concat();
        // The length of little data takes one byte less.
        if head.len() < HEAD_BYTES {
            self.messages.copy_within(begin + HEAD_BYTES.., begin + head.len());
            self.messages.truncate(begin + head.len() + data);
        }
        self.messages[begin..begin + head.len()].copy_from_slice(&head);
    }

    /// All messages.
    pub(super) fn take(&mut self) -> Bytes {
        self.close();
        self.messages.split().freeze()
    }
}

/// Takes the data out of messages, however they are cut.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// The part of a head (prefix, tag, length) that has come.
    head: Vec<u8>,
    /// Bytes of data that are still to come in this message.
    data: usize,
}

impl Decoder {
    /// Moves data from `input` to `out` until one of them is exhausted.
    pub(super) fn decode(&mut self, input: &mut Bytes, out: &mut ReadBuf<'_>) -> io::Result<()> {
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
    use prost::Message as _;

    use super::*;
    use crate::grpc::frame::{self, MessageSplitter};

    fn encode(slices: &[&[u8]]) -> Bytes {
        let slices: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
        let mut encoder = Encoder::default();
        encoder.write(&slices);
        encoder.take()
    }

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
            stream.extend_from_slice(&encode(&[left, right]));
            // An empty message between two others means nothing.
            stream.extend_from_slice(&[0; PREFIX_BYTES]);
        }
        for piece in [1, 2, 5, 8, 100, stream.len()] {
            assert_eq!(decode_all(&stream, piece).unwrap(), data);
        }
    }

    #[test]
    fn messages_are_as_other_encoders_write_them() {
        for length in [1, 127, 128, 5000] {
            let data = Bytes::from(vec![7; length]);
            let message = crate::client::BytesMessage { data: data.clone() }.encode_to_vec();
            assert_eq!(encode(&[&data]), frame::encode(&message), "{length} bytes");
        }
    }

    #[test]
    fn small_writes_share_messages_that_fill_a_frame_each() {
        let data: Vec<u8> = (0..40_000u32).map(|number| number as u8).collect();
        let mut encoder = Encoder::default();
        for part in data.chunks(1000) {
            assert_eq!(encoder.write(&[IoSlice::new(part)]), part.len());
        }
        let messages = encoder.take();
        assert!(encoder.is_empty());
        assert_eq!(decode_all(&messages, messages.len()).unwrap(), data);
        let mut splitter = MessageSplitter::new(MESSAGE_BYTES);
        splitter.push(&messages);
        let sizes: Vec<usize> = std::iter::from_fn(|| splitter.next().unwrap()).map(|m| m.len()).collect();
        let full = MESSAGE_BYTES - PREFIX_BYTES;
        assert_eq!(sizes[..2], [full, full]);
        assert_eq!(sizes.len(), 3);
    }

    #[test]
    fn a_long_write_is_taken_in_parts() {
        let data = vec![1; GATHERED_BYTES];
        let mut encoder = Encoder::default();
        let taken = encoder.write(&[IoSlice::new(&data), IoSlice::new(&data)]);
        assert_eq!(taken, GATHERED_BYTES - 8 * HEAD_BYTES);
        assert!(encoder.is_full());
        assert_eq!(encoder.write(&[IoSlice::new(&data)]), 0);
        assert_eq!(encoder.take().len(), GATHERED_BYTES);
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
