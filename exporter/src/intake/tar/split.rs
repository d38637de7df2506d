//! Cuts a tar stream into entries while it comes.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 100 | name | padded with NUL |
//! | 124 | 12 | size | octal digits, or (first bit set) a big-endian number |
//! | 156 | 1 | type | `0` and NUL: a file |
//! | 257 | 5 | magic | `ustar` |
//! | 345 | 155 | prefix | of the name, with a slash between |
//!
//! An OCI layout needs nothing else: names are short, and there are but files and directories.

use bytes::{Buf, Bytes, BytesMut};

use crate::build::OutputError;

const BLOCK_BYTES: usize = 512;
const NAME: std::ops::Range<usize> = 0..100;
const SIZE: std::ops::Range<usize> = 124..136;
const TYPE: usize = 156;
const MAGIC: std::ops::Range<usize> = 257..262;
const PREFIX: std::ops::Range<usize> = 345..500;

/// What comes next in the stream.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Event {
    /// A file begins.
    Begin { name: String, size: u64 },
    /// Bytes of it.
    Data(Bytes),
    /// It is complete.
    End,
}

/// A tar stream on its way.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    input: Bytes,
    header: BytesMut,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    #[default]
    Header,
    Data {
        left: u64,
        padding: u64,
        skip: bool,
    },
    Padding {
        left: u64,
    },
    /// The end marker was seen.
    Over,
}

impl Splitter {
    /// Adds what came; everything before must have been taken by [`Splitter::next`].
    pub(super) fn push(&mut self, data: Bytes) {
        debug_assert!(self.input.is_empty(), "all events are taken before more is added");
        self.input = data;
    }

    /// Whether the stream is in the middle of an entry.
    pub(super) fn is_inside_entry(&self) -> bool {
        !self.header.is_empty() || matches!(self.state, State::Data { .. } | State::Padding { .. })
    }

    /// The next event; `None` when more has to come first.
    pub(super) fn next(&mut self) -> Result<Option<Event>, OutputError> {
        loop {
            match self.state {
                State::Data { left: 0, padding, skip } => {
                    self.state = if padding > 0 { State::Padding { left: padding } } else { State::Header };
                    if !skip {
                        return Ok(Some(Event::End));
                    }
                }
                State::Padding { left: 0 } => self.state = State::Header,
                _ if self.input.is_empty() => return Ok(None),
                State::Over => self.input.clear(),
                State::Data { left, padding, skip } => {
                    let data = self.take(left);
                    self.state = State::Data { left: left - data.len() as u64, padding, skip };
                    if !skip {
                        return Ok(Some(Event::Data(data)));
                    }
                }
                State::Padding { left } => {
                    let left = left - self.take(left).len() as u64;
                    self.state = State::Padding { left };
                }
                State::Header => {
                    let missing = BLOCK_BYTES - self.header.len();
                    let part = self.take(missing as u64);
                    self.header.extend_from_slice(&part);
                    if self.header.len() == BLOCK_BYTES
                        && let Some(event) = self.begin()?
                    {
                        return Ok(Some(event));
                    }
                }
            }
        }
    }

    /// Up to `most` bytes of the input.
    fn take(&mut self, most: u64) -> Bytes {
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(self.input.len());
        self.input.split_to(length)
    }

    /// Reads a complete header.
    fn begin(&mut self) -> Result<Option<Event>, OutputError> {
        let header = self.header.split();
        if header.iter().all(|&byte| byte == 0) {
            self.state = State::Over;
            return Ok(None);
        }
        if &header[MAGIC] != b"ustar" {
            return Err(OutputError::Layout { reason: "a tar header has no ustar magic".to_owned() });
        }
        let name = match (text(&header[PREFIX]), text(&header[NAME])) {
            (prefix, name) if prefix.is_empty() => name,
            (prefix, name) => format!("{prefix}/{name}"),
        };
        let size = size(&header[SIZE]).ok_or_else(|| OutputError::Layout {
            reason: format!("{name:?} has a size that is no number"),
        })?;
        let padding = (BLOCK_BYTES as u64 - size % BLOCK_BYTES as u64) % BLOCK_BYTES as u64;
        let skip = !matches!(header[TYPE], b'0' | 0);
        self.state = State::Data { left: size, padding, skip };
        Ok((!skip).then_some(Event::Begin { name, size }))
    }
}

/// Text up to the first NUL.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// A size in either of its forms.
fn size(field: &[u8]) -> Option<u64> {
    match field.split_first()? {
        (0x80, mut rest) => {
            while rest.len() > 8 {
                if rest.get_u8() != 0 {
                    return None;
                }
            }
            Some(rest.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
        }
        _ => {
            let digits = text(field);
            u64::from_str_radix(digits.trim(), 8).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(stream: &[u8], piece: usize) -> Result<Vec<(String, Vec<u8>)>, OutputError> {
        let mut splitter = Splitter::default();
        let mut found: Vec<(String, Vec<u8>)> = Vec::new();
        for data in stream.chunks(piece) {
            splitter.push(Bytes::copy_from_slice(data));
            while let Some(event) = splitter.next()? {
                match event {
                    Event::Begin { name, .. } => found.push((name, Vec::new())),
                    Event::Data(data) => found.last_mut().unwrap().1.extend_from_slice(&data),
                    Event::End => {}
                }
            }
        }
        assert!(!splitter.is_inside_entry());
        Ok(found)
    }

    #[test]
    fn files_are_found_however_the_stream_is_cut() {
        let files = [("index.json", 2), ("blobs/sha256/aa", 512), ("blobs/sha256/bb", 1500), ("empty", 0)];
        let mut builder = tar::Builder::new(Vec::new());
        let mut directory = tar::Header::new_ustar();
        directory.set_entry_type(tar::EntryType::Directory);
        directory.set_size(0);
        builder.append_data(&mut directory, "blobs/", &b""[..]).unwrap();
        for (name, size) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(size);
            builder.append_data(&mut header, name, vec![7; size as usize].as_slice()).unwrap();
        }
        let stream = builder.into_inner().unwrap();
        let expected = files.map(|(name, size)| (name.to_owned(), vec![7; size as usize]));
        for piece in [1, 7, 511, 512, 513, stream.len()] {
            assert_eq!(events(&stream, piece).unwrap(), expected);
        }
    }

    #[test]
    fn a_size_has_two_forms() {
        assert_eq!(size(b"00000001750\0"), Some(1000));
        assert_eq!(size(&[0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]), Some(1 << 32));
        assert_eq!(size(&[0x80, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]), None);
        assert_eq!(size(b"abc\0\0\0\0\0\0\0\0\0"), None);
    }

    proptest::proptest! {
        /// The stream is buildkitd's own, but what is in it comes from its builds.
        #[test]
        fn any_bytes_are_events_or_an_error(
            mut stream in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..3000),
            size in "[0-7]{11}",
            piece in 1usize..2000,
        ) {
            if let Some(header) = stream.first_chunk_mut::<BLOCK_BYTES>() {
                header[SIZE][..size.len()].copy_from_slice(size.as_bytes());
                header[TYPE] = b'0';
                header[MAGIC].copy_from_slice(b"ustar");
            }
            let mut splitter = Splitter::default();
            let mut found = 0;
            'stream: for data in stream.chunks(piece) {
                splitter.push(Bytes::copy_from_slice(data));
                loop {
                    match splitter.next() {
                        Ok(Some(Event::Data(data))) => found += data.len(),
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'stream,
                    }
                }
            }
            proptest::prop_assert!(found <= stream.len());
        }
    }

    #[test]
    fn what_is_no_tar_is_refused() {
        assert!(events(&[1; BLOCK_BYTES], BLOCK_BYTES).is_err());
    }
}
