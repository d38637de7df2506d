//! A blob as it is read, from wherever it is: verified at its end, and never longer than its descriptor says.

use std::io::Read;

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;

use super::error::SourceError;
use super::files::{Part, PartReader};
use registry::client::{BlobReader, Descriptor};
use registry::digest::{Digest, Hasher};

/// Bytes of a file handed on at once.
const PIECE_BYTES: usize = 1 << 20;

/// A blob's bytes as they come.
pub struct BlobStream {
    input: Input,
    place: String,
    /// The size that the descriptor says, in bytes.
    size: u64,
    received: u64,
    done: bool,
}

enum Input {
    /// Verifies by itself.
    Registry(Box<BlobReader>),
    /// `None` while a piece is being read.
    File(Option<Box<FileInput>>),
}

struct FileInput {
    reader: Box<dyn Read + Send>,
    hasher: Hasher,
    expected: Digest,
}

impl BlobStream {
    pub(super) fn registry(reader: BlobReader, place: String, size: u64) -> Self {
        Self { input: Input::Registry(Box::new(reader)), place, size, received: 0, done: false }
    }

    /// The blob that `descriptor` names, which is all of `part`.
    pub(super) fn part(part: Part, descriptor: &Descriptor) -> Result<Self, SourceError> {
        part.check_size(descriptor)?;
        Self::file(part, false, descriptor.digest(), descriptor.size())
    }

    /// The content of `part`, decompressed if `gzip`, that has digest `expected`.
    pub(super) fn file(part: Part, gzip: bool, expected: &Digest, size: u64) -> Result<Self, SourceError> {
        let place = part.place.clone();
        let reader = PartReader::new(part);
        let reader: Box<dyn Read + Send> = match gzip {
            true => Box::new(MultiGzDecoder::new(std::io::BufReader::with_capacity(PIECE_BYTES / 4, reader))),
            false => Box::new(reader),
        };
        let input = FileInput { reader, hasher: Hasher::like(expected)?, expected: expected.clone() };
        Ok(Self { input: Input::File(Some(Box::new(input))), place, size, received: 0, done: false })
    }

    /// The content of the file at `path`, which has `size` bytes and this digest.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn of_file(path: &std::path::Path, expected: &Digest, size: u64) -> Result<Self, SourceError> {
        let place = path.display().to_string();
        let file = std::fs::File::open(path).map_err(SourceError::io(place.clone()))?;
        let found = file.metadata().map_err(SourceError::io(place.clone()))?.len();
        Self::file(
            Part { place, file: std::sync::Arc::new(file), offset: 0, size: found },
            false,
            expected,
            size,
        )
    }

    /// The size in bytes that the descriptor says, and that the whole stream has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What is read, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The next bytes; `None` at the end, when all have come and have the blob's digest.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        if self.done {
            return Ok(None);
        }
        let piece = match &mut self.input {
            Input::Registry(reader) => reader.next().await?,
            Input::File(input) => {
                let place = self.place.clone();
                let Some(taken) = input.take() else { return Ok(None) };
                let (back, piece) = tokio::task::spawn_blocking(move || taken.piece(place)).await??;
                *input = back;
                piece
            }
        };
        self.received += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        self.done = piece.is_none();
        if self.received > self.size || (self.done && self.received < self.size) {
            let (place, expected, found) = (self.place.clone(), self.size, self.received);
            return Err(SourceError::Size { place, expected, found });
        }
        Ok(piece)
    }
}

impl FileInput {
    /// Reads a piece; at the end there is none, and the digest is right.
    fn piece(mut self: Box<Self>, place: String) -> Result<(Option<Box<Self>>, Option<Bytes>), SourceError> {
        let mut piece = BytesMut::zeroed(PIECE_BYTES);
        let mut filled = 0;
        while filled < piece.len() {
            match self.reader.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(SourceError::Io { place, error }),
            }
        }
        if filled == 0 {
            let found = self.hasher.clone().finish();
            if found != self.expected {
                return Err(SourceError::Digest { place, expected: self.expected, found });
            }
            return Ok((None, None));
        }
        piece.truncate(filled);
        self.hasher.update(&piece);
        Ok((Some(self), Some(piece.freeze())))
    }
}
