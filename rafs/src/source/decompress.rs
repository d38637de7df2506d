//! Compression of a tar stream, recognised by its first bytes.
//!
//! | first bytes | format | |
//! |---|---|---|
//! | `1f 8b` | gzip | any number of members |
//! | `28 b5 2f fd`, or `50`–`5f` `2a 4d 18` | zstd | any number of frames, skippable ones too |
//! | `fd 37 7a 58 5a 00` | xz | refused by name |
//! | `42 5a 68` | bzip2 | refused by name |
//! | `04 22 4d 18` | lz4 | refused by name |
//! | else | none | |
//!
//! What follows the last member or frame must be another: trailing bytes of any kind, zeros too, are an error, as for
//! container runtimes. zstd windows are limited to 128 MiB, the library's default.
//!
//! Decompression happens on the thread that reads. Behind it, chunks are digested and compressed on other threads, so it
//! already overlaps with the rest of a build.

use std::io::{self, BufReader, ErrorKind, Read};

use flate2::bufread::MultiGzDecoder;

/// Compressed bytes are read in pieces of this size.
const BUFFER_BYTES: usize = 128 << 10;

/// The longest of the magic numbers.
const MAGIC_BYTES: usize = 6;

/// A reader that undoes gzip, zstd, or nothing, as its input demands.
pub struct Decompressor<R> {
    state: InputState<R>,
}

enum InputState<R> {
    /// Nothing is read yet. Only empty after a failure.
    Start(Option<R>),
    Plain(Rewound<R>),
    Gzip(Box<MultiGzDecoder<BufReader<Rewound<R>>>>),
    Zstd(zstd::Decoder<'static, BufReader<Rewound<R>>>),
}

/// A compressed stream that is broken or not supported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The stream is not what its first bytes promise, or is cut off.
    #[error("broken {format} stream, near compressed byte {offset}: {source}")]
    Broken {
        /// What it should be.
        format: &'static str,
        /// How many compressed bytes were read.
        offset: u64,
        /// What the decoder says.
        source: io::Error,
    },
    /// The stream is compressed by something else.
    #[error("the stream is compressed by {0}, expected gzip, zstd or none")]
    Unsupported(&'static str),
}

impl<R: Read> Decompressor<R> {
    /// Nothing is read before the first call of `read`.
    pub fn new(reader: R) -> Self {
        Self { state: InputState::Start(Some(reader)) }
    }

    /// Undoes nothing, whatever the first bytes are.
    pub(crate) fn plain(reader: R) -> Self {
        let start = [0; MAGIC_BYTES];
        Self {
            state: InputState::Plain(Rewound { start, start_length: 0, offset: 0, reader, failed: false }),
        }
    }

    /// Whether there is something to undo, as far as was read: before the first call of `read`, nothing is known.
    pub fn is_compressed(&self) -> bool {
        matches!(self.state, InputState::Gzip(_) | InputState::Zstd(_))
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            return match &mut self.state {
                InputState::Start(reader) => {
                    let reader = reader.take().ok_or_else(|| io::Error::other("the stream failed before"))?;
                    self.state = InputState::detect(reader)?;
                    continue;
                }
                InputState::Plain(reader) => reader.read(buf),
                InputState::Gzip(decoder) => {
                    decoder.read(buf).map_err(|error| broken("gzip", error, decoder.get_ref().get_ref()))
                }
                InputState::Zstd(decoder) => {
                    decoder.read(buf).map_err(|error| broken("zstd", error, decoder.get_ref().get_ref()))
                }
            };
        }
    }
}

impl<R: Read> InputState<R> {
    fn detect(mut reader: R) -> io::Result<Self> {
        let mut magic = [0; MAGIC_BYTES];
        let mut length = 0;
        while length < MAGIC_BYTES {
            match reader.read(&mut magic[length..]) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let reader = Rewound { start: magic, start_length: length, offset: 0, reader, failed: false };
        let buffered = |reader| BufReader::with_capacity(BUFFER_BYTES, reader);
        let unsupported = |name| io::Error::new(ErrorKind::Unsupported, StreamError::Unsupported(name));
        Ok(match &magic[..length] {
            [0x1f, 0x8b, ..] => Self::Gzip(Box::new(MultiGzDecoder::new(buffered(reader)))),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                Self::Zstd(zstd::Decoder::with_buffer(buffered(reader))?)
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0] => return Err(unsupported("xz")),
            [b'B', b'Z', b'h', b'0'..=b'9', 0x31, 0x41] => return Err(unsupported("bzip2")),
            [0x04, 0x22, 0x4d, 0x18, ..] => return Err(unsupported("lz4")),
            _ => Self::Plain(reader),
        })
    }
}

/// Leaves errors of the stream below as they are, and says of the decoder's own what they are about.
fn broken<R>(format: &'static str, source: io::Error, reader: &Rewound<R>) -> io::Error {
    if reader.failed || source.kind() == ErrorKind::Interrupted {
        return source;
    }
    io::Error::new(source.kind(), StreamError::Broken { format, offset: reader.offset, source })
}

/// A reader whose first bytes were read already and are read again.
struct Rewound<R> {
    start: [u8; MAGIC_BYTES],
    start_length: usize,
    /// Bytes read.
    offset: u64,
    reader: R,
    /// Whether `reader` itself failed last.
    failed: bool,
}

impl<R: Read> Read for Rewound<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let start = usize::try_from(self.offset)
            .ok()
            .and_then(|offset| self.start[..self.start_length].get(offset..));
        let result = match start {
            Some(mut start) if !start.is_empty() => start.read(buf),
            _ => self.reader.read(buf),
        };
        self.failed = result.is_err();
        self.offset += *result.as_ref().unwrap_or(&0) as u64;
        result
    }
}
