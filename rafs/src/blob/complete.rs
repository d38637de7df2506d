//! Several descriptions of one blob, each of which may know a part of its chunks.
//!
//! A layer's bootstrap describes what the layer uses of a chunk dictionary, and so does an image's of all its blobs. What they
//! say of the same chunk has to be the same.

use std::fmt;

use super::{Blob, Chunk};

/// Two descriptions of a blob say different things of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Contradiction {
    /// The chunk that they describe differently; `None` where it is the blob as a whole.
    pub chunk: Option<u32>,
    /// What differs.
    pub what: &'static str,
    /// What the second description says.
    pub found: String,
    /// What the first description says.
    pub expected: String,
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { chunk, what, found, expected } = self;
        if let Some(chunk) = chunk {
            write!(f, "of chunk {chunk} ")?;
        }
        write!(f, "the {what} {found}; expected {expected}")
    }
}

impl Chunk {
    /// Whether this is no more than the place of a chunk of which nothing is known.
    pub(crate) fn is_unknown(&self) -> bool {
        self.uncompressed_size == 0
    }

    /// Whether all is known of it that is needed to read it. A bootstrap's chunk table does not say where in a batch a chunk
    /// lies.
    fn is_whole(&self) -> bool {
        self.batch.is_none() || self.compressed_size > 0
    }
}

/// Adds to a blob what another description knows of it, and says of which chunks it knows something new.
///
/// # Errors
///
/// When they contradict each other.
pub(crate) fn complete(blob: &mut Blob, other: Blob) -> Result<Vec<u32>, Contradiction> {
    agree(None, "chunk size", other.chunk_size, blob.chunk_size)?;
    agree(None, "digest algorithm", other.digester, blob.digester)?;
    agree(None, "compressor", other.compressor.word(), blob.compressor.word())?;
    agree(None, "uncompressed size", other.uncompressed_size, blob.uncompressed_size)?;
    // A layer's own bootstrap is written before its blob ends.
    blob.stored_size = blob.stored_size.max(other.stored_size);
    blob.meta = blob.meta.or(other.meta);
    blob.toc = blob.toc.or(other.toc);
    let mut new = Vec::new();
    for (chunk, index) in other.chunks.into_iter().zip(0..) {
        let Some(known) = blob.chunks.get_mut(index as usize) else {
            if !chunk.is_unknown() {
                new.push(index);
            }
            blob.chunks.push(chunk);
            continue;
        };
        if chunk.is_unknown() {
            continue;
        }
        if known.is_unknown() {
            *known = chunk;
            new.push(index);
            continue;
        }
        agree_chunk(index, &chunk, known)?;
        if !known.is_whole() {
            *known = chunk;
        }
    }
    Ok(new)
}

fn agree_chunk(index: u32, found: &Chunk, expected: &Chunk) -> Result<(), Contradiction> {
    let index = Some(index);
    agree(index, "digest", found.digest, expected.digest)?;
    agree(index, "uncompressed offset", found.uncompressed_offset, expected.uncompressed_offset)?;
    agree(index, "uncompressed size", found.uncompressed_size, expected.uncompressed_size)?;
    let in_batch = |chunk: &Chunk| if chunk.batch.is_some() { "in a batch" } else { "by itself" };
    agree(index, "place", in_batch(found), in_batch(expected))?;
    if found.is_whole() && expected.is_whole() {
        agree(index, "stored offset", found.compressed_offset, expected.compressed_offset)?;
        agree(index, "stored size", found.compressed_size, expected.compressed_size)?;
        let compressed = |chunk: &Chunk| if chunk.compressed { "compressed" } else { "not compressed" };
        agree(index, "form", compressed(found), compressed(expected))?;
        let offset = |chunk: &Chunk| chunk.batch.map_or(0, |member| member.offset);
        agree(index, "offset in its batch", offset(found), offset(expected))?;
    }
    Ok(())
}

fn agree<T: fmt::Display + PartialEq>(
    chunk: Option<u32>,
    what: &'static str,
    found: T,
    expected: T,
) -> Result<(), Contradiction> {
    if found == expected {
        return Ok(());
    }
    Err(Contradiction { chunk, what, found: found.to_string(), expected: expected.to_string() })
}
