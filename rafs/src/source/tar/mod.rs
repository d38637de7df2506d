//! A layer as a tar stream: V7, ustar, PAX, GNU and star archives, plain or compressed with gzip or zstd.
//!
//! What readers differ in is decided as container runtimes do, which read the same layers:
//!
//! - The archive ends with two blocks of zeros, or where the stream ends after an entry. What follows the two blocks is
//!   read, so that a digest of the stream is complete and a compressed stream's checksum is verified, and ignored.
//! - Hard links, symbolic links, directories, devices and fifos have no content, whatever their size field says.
//! - A typeflag that is not known is a regular file, as POSIX demands. Volume labels (`V`) and Solaris ACLs (`A`) are
//!   passed over. Continued volumes (`M`) and old GNU name lists (`N`) are refused: ignoring them would lose files.
//! - A regular file whose name ends with a slash is a directory: version 7 had no other way to say so.
//! - Records of a PAX header win over GNU long names, and these over the header's own fields.
//! - From global PAX headers size, owner and mtime hold for all entries that follow; the rest is ignored.
//! - Names of owner and group, and all times but mtime, are ignored.
//!
//! Memory is bounded: names, link targets and PAX headers have at most 1 MiB each, sparse files at most 1,048,576
//! segments. Time is linear in the stream, except that a sparse file may claim holes of any size, which
//! [`Source::read`] makes up.

mod error;
mod header;
pub mod heads;
mod input;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;

use std::io::{self, Read};

pub use error::{Problem, TarError};

use self::header::{BLOCK_BYTES, HeaderBlock, until_nul};
use self::input::Input;
use self::pax::{HEADER_LIMIT_BYTES, Numbers, Records};
use self::sparse::Segment;
use super::decompress::Decompressor;
use super::{Entry, EntryKind, Source, SourceError};
use crate::tree::{DeviceNumber, Metadata, Time};

/// The size limit of GNU long names and link targets: far above `PATH_MAX`, so only nonsense exceeds it.
const NAME_LIMIT_BYTES: u64 = 1 << 20;

/// Reads a tar stream.
pub struct TarSource<R> {
    input: Input<Decompressor<R>>,
    global: Numbers,
    content: EntryContent,
    /// The current entry's name, for messages; empty while it is not known.
    name: Vec<u8>,
    ended: bool,
}

/// What is left of the current entry's content.
#[derive(Default)]
struct EntryContent {
    /// Bytes left in the stream.
    stored: u64,
    /// Bytes behind them up to the next block.
    padding: u64,
    /// Where stored bytes belong, if the file is sparse.
    sparse: Option<SparseContent>,
}

/// How far a sparse file is read.
struct SparseContent {
    /// Segments, none empty; those before `next` are read.
    segments: Vec<Segment>,
    next: usize,
    position: u64,
    size: u64,
}

/// An error before the place is added to it.
enum ReadFailure {
    /// Wrong at the current position.
    Here(Problem),
    /// Wrong at an earlier position.
    At(u64, Problem),
}

impl From<Problem> for ReadFailure {
    fn from(problem: Problem) -> Self {
        Self::Here(problem)
    }
}

impl From<io::Error> for ReadFailure {
    fn from(error: io::Error) -> Self {
        Self::Here(Problem::Io(error))
    }
}

/// What headers before an entry's own say about it.
struct Extensions {
    records: Records,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    any: bool,
}

impl<R: Read> Source for TarSource<R> {
    fn next_entry(&mut self) -> Result<Option<Entry>, SourceError> {
        if self.ended {
            return Ok(None);
        }
        let result = self.step();
        self.ended = !matches!(result, Ok(Some(_)));
        result.map_err(|failure| self.error(failure))
    }

    fn read(&mut self, buf: &mut [u8]) -> Result<usize, SourceError> {
        if self.ended {
            return Ok(0);
        }
        let result = self.read_content(buf);
        self.ended = result.is_err();
        result.map_err(|failure| self.error(failure))
    }
}

impl<R: Read> TarSource<R> {
    /// Reads an archive from its start. Compression is recognised by its first bytes (see [`decompress`]); nothing is
    /// read before the first call of [`Source::next_entry`].
    ///
    /// [`decompress`]: super::decompress
    pub fn new(reader: R) -> Self {
        Self::of(Decompressor::new(reader))
    }

    /// Reads an archive from its start that is not compressed, or not any more.
    pub fn plain(reader: R) -> Self {
        Self::of(Decompressor::plain(reader))
    }

    fn of(input: Decompressor<R>) -> Self {
        Self {
            input: Input::new(input),
            global: Numbers::default(),
            content: EntryContent::default(),
            name: Vec::new(),
            ended: false,
        }
    }

    /// Adds place and name.
    fn error(&mut self, failure: ReadFailure) -> SourceError {
        let (offset, problem) = match failure {
            ReadFailure::Here(problem) => (self.input.offset(), problem),
            ReadFailure::At(offset, problem) => (offset, problem),
        };
        let entry = (!self.name.is_empty()).then(|| self.name.as_slice().into());
        TarError { offset, entry, problem }.into()
    }

    fn step(&mut self) -> Result<Option<Entry>, ReadFailure> {
        self.finish_content()?;
        self.name.clear();
        // Extension headers come before the entry that they extend, and end with it; only global ones stay.
        let mut extensions =
            Extensions { records: Records::new(self.global), long_name: None, long_link: None, any: false };
        loop {
            let start = self.input.offset();
            let Some(header) = self.read_header()? else {
                return match extensions.any {
                    false => Ok(None),
                    true => Err(ReadFailure::At(start, Problem::NoEntryAfterExtension)),
                };
            };
            let size = || header.size().map_err(|problem| ReadFailure::At(start, problem));
            match header.typeflag() {
                b'x' | b'X' => self.read_records(size()?, &mut extensions.records)?,
                b'g' => {
                    self.read_global(size()?)?;
                    extensions.records.numbers = self.global;
                    continue;
                }
                b'L' => {
                    let name = self.read_long(size()?, "long name")?;
                    self.name.clone_from(&name);
                    extensions.long_name = Some(name);
                }
                b'K' => extensions.long_link = Some(self.read_long(size()?, "long link target")?),
                // An ACL of Solaris, a volume's label: neither is a file.
                b'A' | b'V' => {
                    self.content = EntryContent::stored(size()?);
                    self.finish_content()?;
                    continue;
                }
                b'M' => {
                    return Err(ReadFailure::At(
                        start,
                        Problem::Unsupported("a continued volume (typeflag M)"),
                    ));
                }
                b'N' => {
                    return Err(ReadFailure::At(
                        start,
                        Problem::Unsupported("an old GNU name list (typeflag N)"),
                    ));
                }
                _ => return self.entry(start, &header, extensions).map(Some),
            }
            extensions.any = true;
        }
    }

    /// Reads a header block; `None` at the end of the archive, and then the stream is read to its end.
    fn read_header(&mut self) -> Result<Option<HeaderBlock>, ReadFailure> {
        let start = self.input.offset();
        let mut block = [0; BLOCK_BYTES];
        match self.input.read_full(&mut block)? {
            0 => return Ok(None),
            BLOCK_BYTES => {}
            count => return Err(truncated((BLOCK_BYTES - count) as u64, "a header")),
        }
        if block == [0; BLOCK_BYTES] {
            let count = self.input.read_full(&mut block)?;
            if block[..count].iter().any(|&byte| byte != 0) {
                return Err(ReadFailure::At(start, Problem::LoneZeroBlock));
            }
            self.input.skip(u64::MAX)?;
            return Ok(None);
        }
        HeaderBlock::parse(block).map(Some).map_err(|problem| ReadFailure::At(start, problem))
    }

    fn read_records(&mut self, size: u64, records: &mut Records) -> Result<(), ReadFailure> {
        let (start, bytes) = self.read_extension(size, HEADER_LIMIT_BYTES, "PAX header")?;
        // Of two headers before one entry the second counts, as with other readers.
        *records = Records::new(self.global);
        let result = records.add(&bytes);
        if let Some(name) = records.sparse.name.as_ref().or(records.path.as_ref()) {
            self.name.clone_from(name);
        }
        result.map_err(|(position, problem)| ReadFailure::At(start + position as u64, problem))
    }

    fn read_global(&mut self, size: u64) -> Result<(), ReadFailure> {
        let (start, bytes) = self.read_extension(size, HEADER_LIMIT_BYTES, "global PAX header")?;
        self.global
            .add(&bytes)
            .map_err(|(position, problem)| ReadFailure::At(start + position as u64, problem))
    }

    fn read_long(&mut self, size: u64, what: &'static str) -> Result<Vec<u8>, ReadFailure> {
        let (start, mut bytes) = self.read_extension(size, NAME_LIMIT_BYTES, what)?;
        bytes.truncate(until_nul(&bytes).len());
        if bytes.is_empty() { Err(ReadFailure::At(start, Problem::NoName)) } else { Ok(bytes) }
    }

    /// Reads the content of an extension header and its padding. Says where it started.
    fn read_extension(
        &mut self,
        size: u64,
        limit: u64,
        what: &'static str,
    ) -> Result<(u64, Vec<u8>), ReadFailure> {
        let start = self.input.offset();
        if size > limit {
            return Err(Problem::TooLong { what, size, limit }.into());
        }
        // The limit keeps this small, whatever the header claims.
        let mut bytes = vec![0; size as usize];
        let count = self.input.read_full(&mut bytes)? as u64;
        if count < size {
            return Err(truncated(size - count, what));
        }
        self.content = EntryContent { padding: padding(size), ..EntryContent::default() };
        self.finish_content()?;
        Ok((start, bytes))
    }

    /// Skips what is left of the current entry.
    fn finish_content(&mut self) -> Result<(), ReadFailure> {
        let content = std::mem::take(&mut self.content);
        let skipped = self.input.skip(content.stored)?;
        if skipped < content.stored {
            return Err(truncated(content.stored - skipped, "content"));
        }
        // Padding may be missing at the end of the stream, where some writers leave it out.
        self.input.skip(content.padding)?;
        Ok(())
    }

    /// Makes an entry of its own header and those before it.
    fn entry(
        &mut self,
        start: u64,
        header: &HeaderBlock,
        extensions: Extensions,
    ) -> Result<Entry, ReadFailure> {
        let at = |problem| ReadFailure::At(start, problem);
        let Extensions { mut records, long_name, long_link, .. } = extensions;
        let sparse_name = records.sparse.name.take();
        let path = sparse_name.or(records.path.take()).or(long_name).unwrap_or_else(|| header.path());
        self.name.clone_from(&path);
        let link = records.link.take().or(long_link).unwrap_or_else(|| header.link().to_vec());

        let kind = match header.typeflag() {
            b'1' | b'2' if link.is_empty() => return Err(at(Problem::NoTarget)),
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link.into()),
            b'3' => EntryKind::CharDevice(device(header).map_err(at)?),
            b'4' => EntryKind::BlockDevice(device(header).map_err(at)?),
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            typeflag => {
                let stored = records.numbers.size.map_or_else(|| header.size(), Ok).map_err(at)?;
                self.content = EntryContent::stored(stored);
                let size = self.prepare_sparse(start, header, &mut records)?.unwrap_or(stored);
                // `D` is GNU's directory with a list of its entries as content, which is passed over.
                if typeflag == b'D' || path.ends_with(b"/") {
                    self.finish_content()?;
                    EntryKind::Directory
                } else {
                    EntryKind::Regular { size }
                }
            }
        };
        let path = match (path.is_empty(), &kind) {
            (false, _) => path,
            // The root, as some writers name it.
            (true, EntryKind::Directory) => b".".to_vec(),
            (true, _) => return Err(at(Problem::NoName)),
        };
        let metadata = metadata(header, records).map_err(at)?;
        Ok(Entry { path, metadata, kind })
    }

    /// Reads a sparse file's map. Gives the file's size; `None` if it is not sparse.
    fn prepare_sparse(
        &mut self,
        start: u64,
        header: &HeaderBlock,
        records: &mut Records,
    ) -> Result<Option<u64>, ReadFailure> {
        let at = |problem| ReadFailure::At(start, problem);
        let sparse = &mut records.sparse;
        let (segments, size) = match (header.typeflag(), sparse.major, sparse.minor) {
            (b'S', ..) if header.is_gnu() => {
                let segments = sparse::old_gnu_map(header, || self.read_block("the map of a sparse file"))?;
                (segments, Some(header.sparse_real_size().map_err(at)?))
            }
            (b'S', ..) => {
                return Err(at(Problem::Unsupported("a sparse file (typeflag S) that is not GNU's")));
            }
            (b'0' | 0 | b'7', Some(1), Some(0)) => {
                (sparse::map_in_content(|| self.read_stored_block())?, sparse.real_size)
            }
            (b'0' | 0 | b'7', Some(0) | None, Some(0 | 1) | None) => match sparse.segments.take() {
                Some(segments) => (segments, sparse.real_size),
                None => return Ok(None),
            },
            (b'0' | 0 | b'7', ..) => {
                return Err(at(Problem::Unsupported("this version of GNU's sparse format")));
            }
            _ => return Ok(None),
        };
        let size = size.ok_or(at(Problem::Sparse("its size is missing")))?;
        let segments = sparse::checked(segments, size, self.content.stored).map_err(at)?;
        self.content.sparse = Some(SparseContent { segments, next: 0, position: 0, size });
        Ok(Some(size))
    }

    /// Reads a block that belongs to the current header.
    fn read_block(&mut self, within: &'static str) -> Result<[u8; BLOCK_BYTES], ReadFailure> {
        let mut block = [0; BLOCK_BYTES];
        match self.input.read_full(&mut block)? {
            BLOCK_BYTES => Ok(block),
            count => Err(truncated((BLOCK_BYTES - count) as u64, within)),
        }
    }

    /// Reads a block of the current content.
    fn read_stored_block(&mut self) -> Result<[u8; BLOCK_BYTES], ReadFailure> {
        let left = self.content.stored.checked_sub(BLOCK_BYTES as u64);
        self.content.stored = left.ok_or(Problem::Sparse("the map does not end within the content"))?;
        self.read_block("the map of a sparse file")
    }

    fn read_content(&mut self, buf: &mut [u8]) -> Result<usize, ReadFailure> {
        let limit = match &self.content.sparse {
            None => self.content.stored,
            Some(sparse) => match sparse.next_run() {
                Run::Data(length) => length,
                Run::Hole(length) => {
                    let count = clamp(buf.len(), length);
                    buf[..count].fill(0);
                    self.content.advance(count as u64);
                    return Ok(count);
                }
            },
        };
        let count = clamp(buf.len(), limit);
        let count = match self.input.read(&mut buf[..count])? {
            0 if count > 0 => return Err(truncated(self.content.stored, "content")),
            count => count,
        };
        self.content.stored -= count as u64;
        self.content.advance(count as u64);
        Ok(count)
    }
}

impl EntryContent {
    /// Content of `size` bytes without holes.
    fn stored(size: u64) -> Self {
        Self { stored: size, padding: padding(size), sparse: None }
    }

    fn advance(&mut self, count: u64) {
        let Some(sparse) = &mut self.sparse else { return };
        sparse.position += count;
        let ended = |segment: &Segment| segment.offset + segment.length == sparse.position;
        sparse.next += usize::from(count > 0 && sparse.segments.get(sparse.next).is_some_and(ended));
    }
}

/// A part of a sparse file, and its length in bytes.
enum Run {
    Data(u64),
    Hole(u64),
}

impl SparseContent {
    /// What follows the current position. At the end an empty hole.
    fn next_run(&self) -> Run {
        match self.segments.get(self.next) {
            Some(segment) if segment.offset <= self.position => {
                Run::Data(segment.offset + segment.length - self.position)
            }
            Some(segment) => Run::Hole(segment.offset - self.position),
            None => Run::Hole(self.size - self.position),
        }
    }
}

fn metadata(header: &HeaderBlock, records: Records) -> Result<Metadata, Problem> {
    let Numbers { uid, gid, mtime, .. } = records.numbers;
    Ok(Metadata {
        permissions: header.permissions()?,
        uid: uid.map_or_else(|| header.uid(), Ok)?,
        gid: gid.map_or_else(|| header.gid(), Ok)?,
        mtime: match mtime {
            Some(time) => time,
            None => Time { seconds: header.mtime()?, nanoseconds: 0 },
        },
        xattrs: records.xattrs,
    })
}

fn device(header: &HeaderBlock) -> Result<DeviceNumber, Problem> {
    Ok(DeviceNumber { major: header.device_major()?, minor: header.device_minor()? })
}

/// Bytes from the end of `size` bytes of content to the next block.
fn padding(size: u64) -> u64 {
    (BLOCK_BYTES as u64 - size % BLOCK_BYTES as u64) % BLOCK_BYTES as u64
}

fn clamp(length: usize, limit: u64) -> usize {
    usize::try_from(limit).map_or(length, |limit| length.min(limit))
}

fn truncated(missing: u64, within: &'static str) -> ReadFailure {
    ReadFailure::Here(Problem::Truncated { missing, within })
}
