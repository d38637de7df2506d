//! From a chunk's stored bytes to its content, which is always verified.

use std::cell::RefCell;
use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use super::{Blob, Chunk};
use crate::compress::Compressor;
use crate::digest::Digest;
use crate::layout::CHUNK_SIZE_LIMIT;

thread_local! {
    /// A decompressor a thread: making one costs as much as decompressing a small chunk.
    static ZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// LZ4 makes at most 255 bytes of one.
const LZ4_RATIO_LIMIT: u64 = 255;

/// Why bytes cannot be decompressed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum DecompressError {
    #[error("{compressor} data of {stored} bytes is broken")]
    Broken { compressor: Compressor, stored: u64, source: io::Error },
    #[error("{compressor} data of {stored} bytes has {found} bytes of content or more; expected {expected}")]
    Size { compressor: Compressor, stored: u64, found: u64, expected: u64 },
}

/// Why a chunk's stored bytes are not its content.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum DecodeError {
    #[error("the chunk's stored bytes are {found}; expected {expected}")]
    StoredSize { found: u64, expected: u64 },
    #[error("the chunk's size of {0} bytes is impossible: at most 16 MiB are allowed")]
    TooLarge(u32),
    #[error("the chunk cannot be decompressed")]
    Decompress(#[from] DecompressError),
    #[error("the chunk ends at {end} in a batch of {size} bytes")]
    OutsideBatch { end: u64, size: u64 },
    #[error("the chunk's digest is {found}; expected {expected}")]
    Digest { found: Digest, expected: Digest },
}

/// The content of a chunk from its stored bytes (of a batch member: those of the whole batch), verified against its
/// digest.
///
/// # Errors
///
/// When the content is not what the digest says.
pub fn decode(blob: &Blob, chunk: &Chunk, stored: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let content = unpack(blob, chunk, stored)?;
    verify(blob, chunk, &content)?;
    Ok(content)
}

/// As [`decode`], for who verifies elsewhere: the content has the chunk's size, and may be anything.
///
/// # Errors
///
/// When the stored bytes are broken.
pub fn unpack(blob: &Blob, chunk: &Chunk, stored: &[u8]) -> Result<Vec<u8>, DecodeError> {
    if chunk.batch.is_some() {
        return Ok(Batch::decode(blob, chunk, stored)?.part(chunk)?.to_vec());
    }
    check_stored(chunk, stored)?;
    if chunk.uncompressed_size > CHUNK_SIZE_LIMIT {
        return Err(DecodeError::TooLarge(chunk.uncompressed_size));
    }
    let compressor = if chunk.compressed { blob.compressor } else { Compressor::None };
    Ok(decompress(compressor, stored, u64::from(chunk.uncompressed_size))?)
}

/// As [`unpack`] for a chunk that is in no batch, into memory of the caller, of the chunk's size.
///
/// # Errors
///
/// When the stored bytes are broken; the memory may then hold anything.
pub fn unpack_into(blob: &Blob, chunk: &Chunk, stored: &[u8], content: &mut [u8]) -> Result<(), DecodeError> {
    check_stored(chunk, stored)?;
    if chunk.uncompressed_size > CHUNK_SIZE_LIMIT || chunk.uncompressed_size as usize != content.len() {
        return Err(DecodeError::TooLarge(chunk.uncompressed_size));
    }
    let compressor = if chunk.compressed { blob.compressor } else { Compressor::None };
    Ok(decompress_into(compressor, stored, content)?)
}

/// Whether these bytes are the content of the chunk.
///
/// # Errors
///
/// When they are not.
pub fn verify(blob: &Blob, chunk: &Chunk, content: &[u8]) -> Result<(), DecodeError> {
    let found = blob.digester.digest(content);
    if found != chunk.digest {
        return Err(DecodeError::Digest { found, expected: chunk.digest });
    }
    Ok(())
}

/// A decompressed batch, to take its members out of.
#[derive(Debug)]
pub struct Batch(Vec<u8>);

impl Batch {
    /// Decompresses the batch that `member` is in.
    ///
    /// # Errors
    ///
    /// When its stored bytes are broken, or are more than 16 MiB of content.
    pub fn decode(blob: &Blob, member: &Chunk, stored: &[u8]) -> Result<Self, DecodeError> {
        check_stored(member, stored)?;
        let limit = u64::from(blob.chunk_size.min(CHUNK_SIZE_LIMIT));
        match decompress_up_to(blob.compressor, stored, limit) {
            Ok(content) => Ok(Self(content)),
            // nydus-image stores a batch that does not shrink as it is, without saying so. Digests tell.
            Err(DecompressError::Broken { .. }) => Ok(Self(stored.to_vec())),
            Err(error) => Err(error.into()),
        }
    }

    /// The content of a member, verified.
    ///
    /// # Errors
    ///
    /// When it is not in the batch, or not what its digest says.
    pub fn member(&self, blob: &Blob, chunk: &Chunk) -> Result<&[u8], DecodeError> {
        let content = self.part(chunk)?;
        verify(blob, chunk, content)?;
        Ok(content)
    }

    /// As [`member`](Self::member), for who verifies elsewhere: the content has the chunk's size, and may be anything.
    ///
    /// # Errors
    ///
    /// When it is not in the batch.
    pub fn part(&self, chunk: &Chunk) -> Result<&[u8], DecodeError> {
        let start = chunk.batch.map_or(0, |member| u64::from(member.offset));
        let end = start + u64::from(chunk.uncompressed_size);
        let content = self.0.get(start as usize..end as usize);
        content.ok_or(DecodeError::OutsideBatch { end, size: self.0.len() as u64 })
    }
}

fn check_stored(chunk: &Chunk, stored: &[u8]) -> Result<(), DecodeError> {
    let (found, expected) = (stored.len() as u64, u64::from(chunk.compressed_size));
    if found == expected { Ok(()) } else { Err(DecodeError::StoredSize { found, expected }) }
}

/// Decompresses to exactly `size` bytes. Memory grows with what comes out, not with what is claimed.
pub(crate) fn decompress(
    compressor: Compressor,
    stored: &[u8],
    size: u64,
) -> Result<Vec<u8>, DecompressError> {
    let content = decompress_up_to(compressor, stored, size)?;
    if content.len() as u64 != size {
        return Err(wrong_size(compressor, stored, content.len() as u64, size));
    }
    Ok(content)
}

/// The digest (SHA-256) of exactly `size` bytes that `stored_size` bytes decompress to, which are read as they are needed. What
/// is larger than a chunk may be is not held in memory; the rest takes the way of [`decompress`], so that both accept the same
/// bytes. LZ4 cannot do without its whole content: of that, no more is accepted.
pub(crate) fn decompressed_sha256(
    compressor: Compressor,
    mut stored: impl Read,
    stored_size: u64,
    size: u64,
) -> Result<Digest, DecompressError> {
    let broken = |source| DecompressError::Broken { compressor, stored: stored_size, source };
    let is_small = size.max(stored_size) <= u64::from(CHUNK_SIZE_LIMIT);
    if is_small {
        let mut bytes = Vec::with_capacity(stored_size as usize);
        stored.read_to_end(&mut bytes).map_err(broken)?;
        return Ok(Digest(Sha256::digest(decompress(compressor, &bytes, size)?).into()));
    }
    let (hash, found) = match compressor {
        Compressor::None => hash_up_to(stored, size),
        Compressor::Zstd { .. } => {
            zstd::stream::read::Decoder::new(stored).and_then(|content| hash_up_to(content, size))
        }
        Compressor::Lz4 => {
            let expected = u64::from(CHUNK_SIZE_LIMIT);
            let found = size.max(stored_size);
            return Err(DecompressError::Size { compressor, stored: stored_size, found, expected });
        }
    }
    .map_err(broken)?;
    // A byte more than was said is read at the most, so that a bomb ends here too.
    if found != size {
        return Err(DecompressError::Size { compressor, stored: stored_size, found, expected: size });
    }
    Ok(hash)
}

/// Digest and number of the bytes of `content`, of which at most one more than `size` is read.
fn hash_up_to(content: impl Read, size: u64) -> io::Result<(Digest, u64)> {
    let mut content = content.take(size.saturating_add(1));
    let mut buffer = vec![0; 64 << 10];
    let mut hash = Sha256::new();
    let mut found = 0;
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok((Digest(hash.finalize().into()), found)),
            length => hash.update(&buffer[..length]),
        }
        found = size.saturating_add(1) - content.limit();
    }
}

/// Decompresses to exactly as many bytes as `content` has.
fn decompress_into(compressor: Compressor, stored: &[u8], content: &mut [u8]) -> Result<(), DecompressError> {
    let broken = |source| DecompressError::Broken { compressor, stored: stored.len() as u64, source };
    let expected = content.len();
    let found = match compressor {
        Compressor::None if stored.len() == expected => {
            content.copy_from_slice(stored);
            expected
        }
        Compressor::None => stored.len(),
        Compressor::Lz4 => {
            let limit = i32::try_from(expected).map_err(|error| broken(io::Error::other(error)))?;
            lz4::block::decompress_to_buffer(stored, Some(limit), content).map_err(broken)?
        }
        Compressor::Zstd { .. } => {
            with_zstd(|zstd| zstd.decompress_to_buffer(stored, content)).map_err(broken)?
        }
    };
    if found != expected {
        return Err(wrong_size(compressor, stored, found as u64, expected as u64));
    }
    Ok(())
}

/// Works with the thread's decompressor.
fn with_zstd<T>(work: impl FnOnce(&mut zstd::bulk::Decompressor<'static>) -> io::Result<T>) -> io::Result<T> {
    ZSTD.with_borrow_mut(|zstd| {
        let zstd = match zstd {
            Some(zstd) => zstd,
            None => zstd.insert(zstd::bulk::Decompressor::new()?),
        };
        work(zstd)
    })
}

fn wrong_size(compressor: Compressor, stored: &[u8], found: u64, expected: u64) -> DecompressError {
    DecompressError::Size { compressor, stored: stored.len() as u64, found, expected }
}

/// Decompresses to at most `limit` bytes.
fn decompress_up_to(compressor: Compressor, stored: &[u8], limit: u64) -> Result<Vec<u8>, DecompressError> {
    let broken = |source| DecompressError::Broken { compressor, stored: stored.len() as u64, source };
    match compressor {
        Compressor::None if stored.len() as u64 > limit => {
            Err(wrong_size(compressor, stored, stored.len() as u64, limit))
        }
        Compressor::None => Ok(stored.to_vec()),
        Compressor::Lz4 => {
            let limit = limit.min(stored.len() as u64 * LZ4_RATIO_LIMIT);
            let limit = i32::try_from(limit).map_err(|error| broken(io::Error::other(error)))?;
            lz4::block::decompress(stored, Some(limit)).map_err(broken)
        }
        Compressor::Zstd { .. } if limit <= u64::from(CHUNK_SIZE_LIMIT) => {
            let mut content = Vec::with_capacity(limit as usize);
            let result = with_zstd(|zstd| zstd.decompress_to_buffer(stored, &mut content));
            result.map(|_| content).map_err(broken)
        }
        Compressor::Zstd { .. } => {
            let mut content = Vec::new();
            let decoder = zstd::stream::read::Decoder::new(stored).map_err(broken)?;
            decoder.take(limit + 1).read_to_end(&mut content).map_err(broken)?;
            if content.len() as u64 > limit {
                return Err(wrong_size(compressor, stored, content.len() as u64, limit));
            }
            Ok(content)
        }
    }
}
