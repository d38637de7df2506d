//! Reading the table of contents.

use std::io::Read;
use std::ops::Range;

use sha2::{Digest as _, Sha256};
use zerocopy::FromBytes;

use crate::blob::decode::{DecompressError, decompress, decompressed_sha256};
use crate::blob::tar_header;
use crate::compress::Compressor;
use crate::digest::Digest;
use crate::layout::toc::{FLAG_LZ4_BLOCK, FLAG_NONE, FLAG_ZSTD, SIZE_LIMIT, TAR_HEADER_SIZE, TOC, TocEntry};
use crate::limits::Limits;

/// Why a table of contents, or a part that it names, cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum TocError {
    #[error("the blob has no table of contents: it does not end with the tar header of rafs.blob.toc")]
    Missing,
    #[error("the blob's table of contents is broken: expected {0}")]
    Broken(&'static str),
    #[error("the digest of the blob's table of contents is {found}; expected {expected}")]
    Digest { found: Digest, expected: Digest },
    #[error("part {name} has {found} stored bytes; expected {expected}")]
    StoredSize { name: String, found: u64, expected: u64 },
    #[error("part {name} would have {size} bytes; at most {limit} are allowed")]
    TooLarge { name: String, size: u64, limit: u64 },
    #[error("part {name} cannot be decompressed")]
    Decompress { name: String, source: DecompressError },
    #[error("the digest of part {name} is {found}; expected {expected}")]
    PartDigest { name: String, found: Digest, expected: Digest },
}

/// The table of contents of a blob stream.
#[derive(Clone, Debug)]
pub struct Toc {
    /// The parts, as the table has them.
    pub parts: Vec<Part>,
    /// SHA-256 of the table with its tar header, as the bootstrap's blob table has it.
    pub digest: Digest,
    /// Size in bytes of the table with its tar header.
    pub size: u32,
}

/// A part of a blob stream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Part {
    /// Its name: one of the constants of [`crate::layout::toc`].
    pub name: String,
    /// How it is compressed.
    pub compressor: Compressor,
    /// SHA-256 of the uncompressed part.
    pub digest: Digest,
    /// Where its stored bytes are in the stream.
    pub range: Range<u64>,
    /// Size in bytes when uncompressed.
    pub uncompressed_size: u64,
}

impl Toc {
    /// The bytes at the end of a stream of `stream_size` bytes that [`parse`](Self::parse) wants.
    pub fn range(stream_size: u64) -> Range<u64> {
        stream_size.saturating_sub(SIZE_LIMIT as u64)..stream_size
    }

    /// Reads the table from the last bytes of a stream of `stream_size` bytes. `expected` is the digest that the
    /// bootstrap has for it, if any.
    ///
    /// # Errors
    ///
    /// When there is none, it is broken, or it is another one.
    pub fn parse(tail: &[u8], stream_size: u64, expected: Option<Digest>) -> Result<Self, TocError> {
        let (rest, header) = tail.split_last_chunk::<TAR_HEADER_SIZE>().ok_or(TocError::Missing)?;
        let (name, size) = tar_header::decode(header).ok_or(TocError::Missing)?;
        if name != TOC.as_bytes() {
            return Err(TocError::Missing);
        }
        let start = usize::try_from(size).ok().and_then(|size| rest.len().checked_sub(size));
        let start = start.ok_or(TocError::Broken("at most 4,096 bytes with its tar header"))?;
        let digest = Digest(Sha256::digest(&tail[start..]).into());
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(TocError::Digest { found: digest, expected });
        }
        let entries = <[TocEntry]>::ref_from_bytes(&rest[start..])
            .map_err(|_| TocError::Broken("a whole number of entries of 128 bytes"))?;
        let end = stream_size.saturating_sub((tail.len() - start) as u64);
        let parts = entries.iter().map(|entry| part(entry, end)).collect::<Result<_, _>>()?;
        Ok(Self { parts, digest, size: (tail.len() - start) as u32 })
    }

    /// The part of this name.
    pub fn part(&self, name: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.name == name)
    }
}

fn part(entry: &TocEntry, end: u64) -> Result<Part, TocError> {
    let name = entry.name.split(|&byte| byte == 0).next().unwrap_or_default();
    let compressor = match entry.flags.get() {
        FLAG_NONE => Compressor::None,
        FLAG_ZSTD => Compressor::Zstd { level: 0 },
        FLAG_LZ4_BLOCK => Compressor::Lz4,
        _ => return Err(TocError::Broken("a known compressor")),
    };
    let start = entry.compressed_offset.get();
    let part_end = start.checked_add(entry.compressed_size.get()).filter(|part_end| *part_end <= end);
    Ok(Part {
        name: std::str::from_utf8(name).map_err(|_| TocError::Broken("names in ASCII"))?.to_owned(),
        compressor,
        digest: Digest(entry.uncompressed_digest),
        range: start..part_end.ok_or(TocError::Broken("parts that end before it"))?,
        uncompressed_size: entry.uncompressed_size.get(),
    })
}

impl Part {
    /// The part's content from its stored bytes, verified. Not for `image.blob`, whose chunks are compressed one by one.
    ///
    /// # Errors
    ///
    /// When the content is not what the digest says.
    pub fn decode(&self, stored: &[u8]) -> Result<Vec<u8>, TocError> {
        self.check_sizes(stored)?;
        self.check_limits(Limits::DEFAULT)?;
        let content = decompress(self.compressor, stored, self.uncompressed_size)
            .map_err(|source| TocError::Decompress { name: self.name.clone(), source })?;
        self.check_digest(Digest(Sha256::digest(&content).into()))?;
        Ok(content)
    }

    /// Verifies the part's content without keeping it.
    ///
    /// # Errors
    ///
    /// As [`decode`](Self::decode).
    pub fn verify(&self, stored: &[u8]) -> Result<(), TocError> {
        self.check_sizes(stored)?;
        self.check_limits(Limits::DEFAULT)?;
        self.verify_stream(stored)
    }

    /// Verifies the part's content while its stored bytes come. Their number is what the table says, and was checked.
    pub(crate) fn verify_stream(&self, stored: impl Read) -> Result<(), TocError> {
        let found = decompressed_sha256(self.compressor, stored, self.stored_size(), self.uncompressed_size)
            .map_err(|source| TocError::Decompress { name: self.name.clone(), source })?;
        self.check_digest(found)
    }

    /// Size in bytes as it is stored.
    pub fn stored_size(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Refuses a part that is too large. To be asked before it is read: what the table says may be anything.
    ///
    /// # Errors
    ///
    /// When it is larger than the limits allow, stored or not.
    pub fn check_limits(&self, limits: Limits) -> Result<(), TocError> {
        let (size, limit) = (self.uncompressed_size.max(self.stored_size()), limits.part_bytes);
        if size > limit { Err(TocError::TooLarge { name: self.name.clone(), size, limit }) } else { Ok(()) }
    }

    /// Whether this is the part's content.
    ///
    /// # Errors
    ///
    /// When it is not what the digest says.
    pub(crate) fn check(&self, content: &[u8]) -> Result<(), TocError> {
        self.check_digest(Digest(Sha256::digest(content).into()))
    }

    fn check_sizes(&self, stored: &[u8]) -> Result<(), TocError> {
        let (found, expected) = (stored.len() as u64, self.stored_size());
        if found != expected {
            return Err(TocError::StoredSize { name: self.name.clone(), found, expected });
        }
        Ok(())
    }

    fn check_digest(&self, found: Digest) -> Result<(), TocError> {
        if found != self.digest {
            return Err(TocError::PartDigest { name: self.name.clone(), found, expected: self.digest });
        }
        Ok(())
    }
}
