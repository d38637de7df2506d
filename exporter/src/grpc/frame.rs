//! The length-prefixed messages in a stream's DATA frames.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 1 | compressed | 0; 1 needs a `grpc-encoding`, which nothing here asks for |
//! | 1 | 4 | length | big-endian, bytes of the message that follows |

use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;

use super::{Code, Status};

/// Size in bytes of what precedes each message.
pub(crate) const PREFIX_BYTES: usize = 5;

/// Prefix and message.
pub(crate) fn encode(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("messages made here are far smaller than 4 GiB");
    let mut out = Vec::with_capacity(PREFIX_BYTES + message.len());
    out.push(0);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(message);
    out.into()
}

/// Cuts a sequence of bytes into messages.
#[derive(Debug)]
pub(crate) struct MessageSplitter {
    buffer: BytesMut,
    limit: usize,
}

impl MessageSplitter {
    /// One that refuses messages over `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), limit }
    }

    /// Adds what came.
    pub(crate) fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next message, if all of it has come.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let Some((prefix, _)) = self.buffer.split_first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let [compressed, length @ ..] = *prefix;
        if compressed != 0 {
            return Err(Status::new(Code::Unimplemented, "compressed gRPC messages are not supported here"));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > self.limit {
            let message = format!("gRPC message of {length} bytes: at most {} are accepted here", self.limit);
            return Err(Status::new(Code::ResourceExhausted, message));
        }
        let whole = PREFIX_BYTES + length;
        if self.buffer.len() < whole {
            // Room for all of it at once: a buffer that grows with each piece is copied again and again.
            self.buffer.reserve(whole - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(PREFIX_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    /// Whether a message has begun but not ended.
    pub(crate) fn is_inside_message(&self) -> bool {
        !self.buffer.is_empty()
    }
}

/// Reads messages from a stream.
pub(crate) struct MessageReader {
    body: RecvStream,
    splitter: MessageSplitter,
}

impl MessageReader {
    /// Of `body`, refusing messages over `limit` bytes.
    pub(crate) fn new(body: RecvStream, limit: usize) -> Self {
        Self { body, splitter: MessageSplitter::new(limit) }
    }

    /// The next message; `None` at the end of the stream.
    pub(crate) async fn message(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.splitter.next()? {
                return Ok(Some(message));
            }
            match self.body.data().await {
                Some(Ok(data)) => {
                    self.splitter.push(&data);
                    // What a stream may hold back is bounded by the size limit of a message.
                    self.body.flow_control().release_capacity(data.len()).map_err(|e| interrupted(&e))?;
                }
                Some(Err(error)) => return Err(interrupted(&error)),
                None if self.splitter.is_inside_message() => {
                    return Err(Status::new(Code::Internal, "the stream ended inside a gRPC message"));
                }
                None => return Ok(None),
            }
        }
    }

    /// The trailers, after the last message.
    pub(crate) async fn trailers(&mut self) -> Result<Option<HeaderMap>, Status> {
        self.body.trailers().await.map_err(|e| interrupted(&e))
    }
}

/// The status for a stream that broke off.
pub(crate) fn interrupted(error: &h2::Error) -> Status {
    let code = if error.is_reset() { Code::Cancelled } else { Code::Unavailable };
    Status::new(code, format!("HTTP/2 stream broke off: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let messages = [&b"first"[..], b"", b"second"];
        let stream: Vec<u8> = messages.iter().flat_map(|message| encode(message).to_vec()).collect();
        for piece in 1..stream.len() {
            let mut splitter = MessageSplitter::new(100);
            let mut found = Vec::new();
            for data in stream.chunks(piece) {
                splitter.push(data);
                while let Some(message) = splitter.next().unwrap() {
                    found.push(message.to_vec());
                }
            }
            assert_eq!(found, messages);
            assert!(!splitter.is_inside_message());
        }
    }

    #[test]
    fn a_message_over_the_limit_is_refused_before_it_comes() {
        let mut splitter = MessageSplitter::new(10);
        splitter.push(&[0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(splitter.next().unwrap_err().code, Code::ResourceExhausted);
    }
}
