//! One read: the pieces it consists of, and how they are read from the cache.

use std::sync::Arc;
use std::time::Duration;

use rafs::blob::ChunkIndex;

use super::message::{ChunkError, ChunkKey};
use super::wait::{Loose, Urgency, Want};
use crate::buffers::Buffers;
use crate::cache::CachedBlob;

/// A part of a read that lies in one chunk, or in none.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Bytes of a chunk.
    Chunk {
        /// The blob that holds it.
        blob: Arc<CachedBlob>,
        /// The chunk that has to be ready.
        chunk: ChunkIndex,
        /// Where the bytes start in the uncompressed blob.
        offset: u64,
        /// How many bytes.
        len: usize,
    },
    /// A hole: this many zeros.
    Zeros(usize),
}

impl Piece {
    fn is_ready(&self, loose: &[Loose]) -> bool {
        match self {
            Self::Chunk { blob, chunk, .. } => blob.is_ready(*chunk) || self.is_in(loose).is_some(),
            Self::Zeros(_) => true,
        }
    }

    /// The piece's chunk, if it is not to be read in the cache.
    fn is_in<'a>(&self, loose: &'a [Loose]) -> Option<&'a Loose> {
        // The usual case: nothing is loose.
        let key = if loose.is_empty() { return None } else { self.want()?.key() };
        loose.iter().find(|loose| loose.key == key)
    }

    /// The chunk that it lies in.
    pub(super) fn chunk(&self) -> Option<(&Arc<CachedBlob>, ChunkIndex)> {
        match self {
            Self::Chunk { blob, chunk, .. } => Some((blob, *chunk)),
            Self::Zeros(_) => None,
        }
    }

    /// What has to be there for the piece to be read.
    fn want(&self) -> Option<Want> {
        match self {
            Self::Chunk { blob, chunk, .. } => Some(Want { blob: Arc::clone(blob), chunk: *chunk }),
            Self::Zeros(_) => None,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Chunk { len, .. } | Self::Zeros(len) => *len,
        }
    }

    /// Whether the buffer now has the piece: its chunk may cease to be ready at any time.
    fn read(&self, buffer: &mut [u8], loose: &[Loose]) -> Result<bool, ReadError> {
        match self {
            Self::Chunk { offset, .. } if self.is_in(loose).is_some() => {
                let from = self.is_in(loose).and_then(|loose| {
                    let start = usize::try_from(offset.checked_sub(loose.offset)?).ok()?;
                    loose.bytes.get(start..start.checked_add(buffer.len())?)
                });
                if let Some(bytes) = from {
                    buffer.copy_from_slice(bytes);
                }
                Ok(from.is_some())
            }
            Self::Chunk { blob, chunk, offset, .. } => {
                blob.read(*chunk, buffer, *offset).map_err(|error| ReadError::Chunk {
                    key: Want { blob: Arc::clone(blob), chunk: *chunk }.key(),
                    source: ChunkError::Cache(error.to_string()),
                })
            }
            Self::Zeros(_) => {
                buffer.fill(0);
                Ok(true)
            }
        }
    }
}

/// Why a read fails.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A chunk is not to be had.
    #[error("blob {} chunk {}: {source}", key.blob, key.chunk.0)]
    Chunk {
        /// Which.
        key: ChunkKey,
        /// Why.
        source: ChunkError,
    },
    /// A chunk that was to be in the cache came, and the cache had no room for it.
    #[error("blob {} chunk {}: the cache has no room for it", .0.blob, .0.chunk.0)]
    NoRoom(ChunkKey),
    /// The worker took too long.
    #[error("its chunks did not arrive within {0:?}")]
    Deadline(Duration),
}

/// How a read is answered.
pub(super) type ReadAnswer = Box<dyn FnOnce(Result<&[u8], ReadError>) + Send>;

/// Answers from the cache and what is not to be read there; what is missing, if something is, and how it is to be waited for: then
/// nothing is answered yet. What is read goes through one of `buffers`.
pub(super) fn read_now(
    pieces: &[Piece],
    loose: &[Loose],
    buffers: &Buffers,
    answer: ReadAnswer,
) -> Result<(), (ReadAnswer, Vec<Want>, Urgency)> {
    let missing: Vec<Want> =
        pieces.iter().filter(|piece| !piece.is_ready(loose)).filter_map(Piece::want).collect();
    if !missing.is_empty() {
        return Err((answer, missing, Urgency::Reader));
    }
    let total = pieces.iter().map(Piece::len).sum();
    buffers.with(total, |buffer| match fill(pieces, loose, buffer) {
        Ok(missing) if !missing.is_empty() => Err((answer, missing, Urgency::Reread)),
        Ok(_) => {
            answer(Ok(buffer));
            Ok(())
        }
        Err(error) => {
            answer(Err(error));
            Ok(())
        }
    })
}

/// Reads the pieces, which fill the buffer; those that turned out not to be there.
fn fill(pieces: &[Piece], loose: &[Loose], buffer: &mut [u8]) -> Result<Vec<Want>, ReadError> {
    let mut rest = buffer;
    let mut missing = Vec::new();
    for piece in pieces {
        let (part, behind) = rest.split_at_mut(piece.len());
        if !piece.read(part, loose)? {
            missing.extend(piece.want());
        }
        rest = behind;
    }
    Ok(missing)
}
