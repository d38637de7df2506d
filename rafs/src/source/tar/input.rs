//! The byte stream under a tar archive: buffered for headers, direct for content, and aware of its position.

use std::io::{self, BufRead, BufReader, ErrorKind, Read};

/// Headers and small files are served from a buffer of this many bytes. Reads of at least this size pass it by once it
/// is empty, so large files are copied once, by the kernel or the decompressor.
const BUFFER_BYTES: usize = 64 << 10;

/// A reader that counts.
pub(super) struct Input<R> {
    reader: BufReader<R>,
    offset: u64,
}

impl<R: Read> Input<R> {
    /// Reads from the start of an archive.
    pub(super) fn new(reader: R) -> Self {
        Self { reader: BufReader::with_capacity(BUFFER_BYTES, reader), offset: 0 }
    }

    /// The position: how many bytes were read or skipped.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads once; 0 is the end of the stream (or of `buf`).
    pub(super) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.reader.read(buf) {
                Ok(count) => {
                    self.offset += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Fills `buf` as far as the stream goes.
    pub(super) fn read_full(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.read(&mut buf[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(filled)
    }

    /// Passes over `count` bytes, or fewer at the end of the stream, and says how many.
    pub(super) fn skip(&mut self, count: u64) -> io::Result<u64> {
        let mut skipped = 0;
        while skipped < count {
            let available = match self.reader.fill_buf() {
                Ok(buffer) => buffer.len(),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available == 0 {
                break;
            }
            let step = usize::try_from(count - skipped).unwrap_or(usize::MAX).min(available);
            self.reader.consume(step);
            self.offset += step as u64;
            skipped += step as u64;
        }
        Ok(skipped)
    }
}
