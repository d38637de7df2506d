//! Cuts a tar stream of an OCI layout into its files while it comes.

use bytes::{Bytes, BytesMut};
use rafs::source::tar::heads::{BLOCK_BYTES, Extension, Head, Heads};

use crate::build::OutputError;

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
pub(super) struct TarSplitter {
    input: Bytes,
    /// What has come of a header block or of an extension's content.
    gathered: BytesMut,
    heads: Heads,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    #[default]
    Header,
    /// The content of what says something about the next entry.
    Extension(Extension),
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

impl TarSplitter {
    /// Adds what came; everything before must have been taken by [`TarSplitter::next`].
    pub(super) fn push(&mut self, data: Bytes) {
        debug_assert!(self.input.is_empty(), "all events are taken before more is added");
        self.input = data;
    }

    /// Whether the stream is in the middle of an entry.
    pub(super) fn is_inside_entry(&self) -> bool {
        !self.gathered.is_empty() || !matches!(self.state, State::Header | State::Over)
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
                State::Extension(Extension { size: 0, .. }) => self.state = State::Header,
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
                    let block = self.gather(BLOCK_BYTES);
                    if let Some(block) = block.as_deref().and_then(|block| block.try_into().ok())
                        && let Some(event) = self.begin(block)?
                    {
                        return Ok(Some(event));
                    }
                }
                State::Extension(extension) => {
                    if let Some(content) = self.gather(extension.size) {
                        self.heads.extend(extension, &content).map_err(wrong)?;
                        self.state = State::Padding { left: padding(extension.size as u64) };
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

    /// The next `length` bytes, once all have come.
    fn gather(&mut self, length: usize) -> Option<BytesMut> {
        let part = self.take((length - self.gathered.len()) as u64);
        self.gathered.extend_from_slice(&part);
        (self.gathered.len() == length).then(|| self.gathered.split())
    }

    /// Reads a complete header.
    fn begin(&mut self, block: [u8; BLOCK_BYTES]) -> Result<Option<Event>, OutputError> {
        let entry = match self.heads.next(block).map_err(wrong)? {
            Head::End => {
                self.state = State::Over;
                return Ok(None);
            }
            Head::Extension(extension) => {
                self.state = State::Extension(extension);
                return Ok(None);
            }
            Head::Entry(entry) => entry,
        };
        let (size, skip) = (entry.size, !entry.is_file());
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        self.state = State::Data { left: size, padding: padding(size), skip };
        Ok((!skip).then_some(Event::Begin { name, size }))
    }
}

/// What follows `size` bytes up to the next block.
fn padding(size: u64) -> u64 {
    (BLOCK_BYTES as u64 - size % BLOCK_BYTES as u64) % BLOCK_BYTES as u64
}

fn wrong(problem: rafs::source::tar::Problem) -> OutputError {
    OutputError::Layout { reason: problem.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(stream: &[u8], piece: usize) -> Result<Vec<(String, Vec<u8>)>, OutputError> {
        let mut splitter = TarSplitter::default();
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

    /// A header as Go's archive/tar writes it, with its checksum.
    fn header(name: &str, typeflag: u8, size: &[u8]) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_entry_type(tar::EntryType::new(typeflag));
        header.as_mut_bytes()[124..124 + size.len()].copy_from_slice(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn begin_of(stream: &[u8]) -> Vec<Event> {
        let mut found = Vec::new();
        let mut splitter = TarSplitter::default();
        for data in stream.chunks(100) {
            splitter.push(Bytes::copy_from_slice(data));
            while let Some(event) = splitter.next().unwrap() {
                found.push(event);
            }
        }
        found
    }

    #[test]
    fn a_file_of_8_gib_and_more_has_its_size_in_any_of_go_s_forms() {
        let size: u64 = 9_000_000_000;
        let name = "blobs/sha256/aa";
        let record = format!("19 size={size}\n");
        // FormatPAX: a record, and a size field of zeros. FormatGNU: a base-256 number.
        let mut pax = header("PaxHeaders.0/aa", b'x', format!("{:011o}\0", record.len()).as_bytes());
        pax.extend_from_slice(record.as_bytes());
        pax.resize(1024, 0);
        pax.extend(header(name, b'0', b"00000000000\0"));
        let mut number = [0; 12];
        number[0] = 0x80;
        number[4..].copy_from_slice(&size.to_be_bytes());
        let gnu = header(name, b'0', &number);
        for mut stream in [pax, gnu] {
            stream.extend_from_slice(b"content");
            let events = begin_of(&stream);
            assert_eq!(events[0], Event::Begin { name: name.to_owned(), size });
            assert!(matches!(&events[1], Event::Data(data) if b"content".starts_with(data)));
            assert!(!events.contains(&Event::End));
        }
    }

    #[test]
    fn a_file_of_8_gib_ends_where_it_ends_and_what_follows_is_found() {
        const PIECE_BYTES: usize = 1 << 20;
        // Not a multiple of a block, nor of what comes at once.
        let size: u64 = (8 << 30) + 300;
        let record = format!("19 size={size}\n");
        let mut head = header("PaxHeaders.0/aa", b'x', format!("{:011o}\0", record.len()).as_bytes());
        head.extend_from_slice(record.as_bytes());
        head.resize(1024, 0);
        head.extend(header("blobs/sha256/aa", b'0', b"00000000000\0"));
        let mut tail = vec![0; size.next_multiple_of(BLOCK_BYTES as u64) as usize % PIECE_BYTES];
        tail.extend(header("index.json", b'0', b"00000000002\0"));
        tail.extend_from_slice(b"{}");
        tail.resize(tail.len().next_multiple_of(BLOCK_BYTES), 0);
        let zeros = Bytes::from(vec![0; PIECE_BYTES]);
        let pieces = std::iter::repeat_n(zeros, size as usize / PIECE_BYTES);
        let (mut splitter, mut sizes) = (TarSplitter::default(), Vec::new());
        for data in std::iter::once(head.into()).chain(pieces).chain([tail.into()]) {
            splitter.push(data);
            while let Some(event) = splitter.next().unwrap() {
                match event {
                    Event::Begin { name, size } => sizes.push((name, size, 0)),
                    Event::Data(data) => sizes.last_mut().unwrap().2 += data.len() as u64,
                    Event::End => {}
                }
            }
        }
        assert!(!splitter.is_inside_entry());
        let expected = [("blobs/sha256/aa", size), ("index.json", 2)];
        assert_eq!(sizes, expected.map(|(name, size)| (name.to_owned(), size, size)));
    }

    proptest::proptest! {
        /// The stream is buildkitd's own, but what is in it comes from its builds.
        #[test]
        fn any_bytes_are_events_or_an_error(
            mut stream in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..3000),
            size in "[0-7]{0,11}",
            typeflag in proptest::sample::select(b"0xgLK".to_vec()),
            piece in 1usize..2000,
        ) {
            if stream.len() >= BLOCK_BYTES {
                stream[..BLOCK_BYTES].copy_from_slice(&header("name", typeflag, size.as_bytes()));
            }
            let mut splitter = TarSplitter::default();
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
