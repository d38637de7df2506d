//! Units of work: what passes between the threads of a build, and is recycled.
//!
//! Small files share a unit, so that threads meet once a megabyte and not once a file.

use super::seen::PieceNumber;
use crate::compress::Encoder;
use crate::digest::Digest;
use crate::tree::ChunkRef;

/// Size in bytes of a unit's content, unless chunks are larger.
pub(super) const UNIT_SIZE: usize = 1 << 20;

/// Contents of consecutive pieces of files, on their way from the source to the blob.
#[derive(Default)]
pub(super) struct Unit {
    /// Place of the unit in the blob.
    pub(super) number: u64,
    /// Whether the pieces make one batch, compressed as one.
    pub(super) batch: bool,
    /// The uncompressed content: its full length is allocated, and `used` bytes of it are filled.
    pub(super) content: Vec<u8>,
    /// Bytes of `content` that are filled.
    pub(super) used: usize,
    /// The pieces in `content`.
    pub(super) pieces: Vec<Piece>,
    /// What is to be written of the pieces that are not large and incompressible.
    pub(super) packed: Vec<u8>,
    /// Bytes of `packed` that are filled.
    pub(super) packed_used: usize,
}

/// One chunk of one file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Its number in the input.
    pub(super) number: PieceNumber,
    /// Where it starts in the unit's content.
    pub(super) start: u32,
    /// Its size in bytes.
    pub(super) length: u32,
    /// Digest of the content, once it was computed.
    pub(super) digest: Digest,
    /// What becomes of it.
    pub(super) fate: Fate,
}

/// What becomes of a piece.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// Nobody looked at it yet, or it is part of a batch.
    Open,
    /// An earlier piece has the same content.
    SameAs(PieceNumber),
    /// The chunk dictionary has the content; the blob index is that in the dictionary.
    InDictionary(ChunkRef),
    /// To be stored as it is, from the unit's content.
    Raw,
    /// To be stored from the unit's packed bytes.
    Packed {
        /// Where it starts there.
        start: u32,
        /// Its stored size in bytes.
        length: u32,
        /// Whether these bytes are compressed.
        compressed: bool,
    },
}

impl Unit {
    /// Makes an unused or recycled unit ready to be filled.
    pub(super) fn reset(&mut self, capacity: usize) {
        // Memory is allocated once, touched as far as it is needed, and recycled: the first touch of a page costs more
        // than filling it.
        if self.content.len() != capacity {
            self.content = vec![0; capacity];
            self.packed = vec![0; Encoder::bound(capacity)];
        }
        self.used = 0;
        self.packed_used = 0;
        self.batch = false;
        self.pieces.clear();
    }

    /// Bytes that still fit.
    pub(super) fn room(&self) -> usize {
        self.content.len() - self.used
    }

    /// Adds the piece that was read to the first bytes of the room.
    pub(super) fn push(&mut self, number: PieceNumber, length: usize, digest: Option<Digest>) {
        self.pieces.push(Piece {
            number,
            start: offset(self.used),
            length: offset(length),
            digest: digest.unwrap_or(Digest([0; 32])),
            fate: Fate::Open,
        });
        self.used += length;
    }

    /// The room of the unit's content.
    pub(super) fn free(&mut self) -> &mut [u8] {
        &mut self.content[self.used..]
    }

    /// The uncompressed content of a piece.
    pub(super) fn content_of(&self, piece: &Piece) -> &[u8] {
        &self.content[piece.start as usize..][..piece.length as usize]
    }
}

/// An offset or size within a unit.
pub(super) fn offset(value: usize) -> u32 {
    u32::try_from(value).expect("a unit is smaller than 4 GiB")
}
