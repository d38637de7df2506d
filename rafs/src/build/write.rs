//! The writer: takes units in order, and stores what is new.

use std::io::Write;

use super::BuildError;
use super::dictionary::outside;
use super::seen::{PieceNumber, Seen};
use super::unit::{Fate, Piece, Unit};
use crate::blob::stream;
use crate::blob::{BatchMember, BlobIndex, Chunk, ChunkIndex};
use crate::layout::{BLOCK_SIZE, CHUNKS_LIMIT, STORED_LIMIT_BYTES};
use crate::tree::ChunkRef;

/// The chunk data so far.
pub(super) struct ChunkWriter<'a, W> {
    out: stream::BlobWriter<W>,
    seen: &'a Seen,
    written: Written,
}

/// What was written.
#[derive(Default)]
pub(super) struct Written {
    /// The blob's chunks.
    pub(super) chunks: Vec<Chunk>,
    /// Where each piece's content is, by its number. A blob index of 0 is the own blob, others are of the dictionary,
    /// plus one.
    pub(super) places: Vec<Option<ChunkRef>>,
    /// End of the chunk data in the stream.
    pub(super) compressed_size: u64,
    /// End of the last chunk in the uncompressed blob.
    pub(super) uncompressed_size: u64,
    /// Number of batches.
    batches: u32,
}

impl<'a, W: Write> ChunkWriter<'a, W> {
    pub(super) fn new(out: W, seen: &'a Seen) -> Self {
        Self { out: stream::BlobWriter::new(out), seen, written: Written::default() }
    }

    /// Ends the chunk data.
    pub(super) fn finish(self) -> (stream::BlobWriter<W>, Written) {
        (self.out, self.written)
    }

    /// Stores what is new in a unit.
    pub(super) fn write(&mut self, unit: &Unit) -> Result<(), BuildError> {
        if unit.batch { self.write_batch(unit) } else { self.write_chunks(unit) }
    }

    fn write_chunks(&mut self, unit: &Unit) -> Result<(), BuildError> {
        // What is to be stored of the packed bytes and follows one another is written in one go.
        let mut run = 0..0;
        for piece in &unit.pieces {
            match piece.fate {
                Fate::SameAs(earlier) => self.place_like(piece.number, earlier),
                Fate::InDictionary(found) => {
                    self.place(piece.number, Some(outside(found)));
                }
                Fate::Raw if self.is_first(piece) => {
                    self.emit(&unit.packed[run.clone()])?;
                    run = run.end..run.end;
                    self.add(piece, piece.length, false, None)?;
                    self.emit(unit.content_of(piece))?;
                }
                Fate::Packed { start, length, compressed } if self.is_first(piece) => {
                    let (start, end) = (start as usize, start as usize + length as usize);
                    if run.end != start {
                        self.emit(&unit.packed[run.clone()])?;
                        run.start = start;
                    }
                    run.end = end;
                    self.add(piece, length, compressed, None)?;
                }
                Fate::Raw | Fate::Packed { .. } | Fate::Open => {
                    let earlier = self.seen.first(&piece.digest, piece.number);
                    self.place_like(piece.number, earlier);
                }
            }
        }
        self.emit(&unit.packed[run])
    }

    fn write_batch(&mut self, unit: &Unit) -> Result<(), BuildError> {
        let index = self.written.batches;
        self.written.batches += 1;
        let stored = super::unit::offset(unit.packed_used);
        let start = self.written.compressed_size;
        for piece in &unit.pieces {
            // All members start where the batch does.
            self.written.compressed_size = start;
            self.add(piece, stored, true, Some(BatchMember { index, offset: piece.start }))?;
        }
        self.emit(&unit.packed[..unit.packed_used])
    }

    fn is_first(&self, piece: &Piece) -> bool {
        self.seen.first(&piece.digest, piece.number) == piece.number
    }

    /// Adds a chunk whose stored bytes come next.
    fn add(
        &mut self,
        piece: &Piece,
        stored: u32,
        compressed: bool,
        batch: Option<BatchMember>,
    ) -> Result<(), BuildError> {
        let written = &mut self.written;
        let index = u32::try_from(written.chunks.len()).unwrap_or(CHUNKS_LIMIT);
        if index >= CHUNKS_LIMIT {
            return Err(BuildError::TooManyChunks { limit: CHUNKS_LIMIT });
        }
        if written.compressed_size + u64::from(stored) > STORED_LIMIT_BYTES {
            return Err(BuildError::BlobTooLarge { limit: STORED_LIMIT_BYTES });
        }
        written.chunks.push(Chunk {
            digest: piece.digest,
            compressed_offset: written.compressed_size,
            compressed_size: stored,
            uncompressed_offset: written.uncompressed_size,
            uncompressed_size: piece.length,
            compressed,
            batch,
        });
        written.compressed_size += u64::from(stored);
        written.uncompressed_size += u64::from(piece.length).next_multiple_of(BLOCK_SIZE);
        self.place(piece.number, Some(ChunkRef { blob: BlobIndex(0), chunk: ChunkIndex(index) }));
        Ok(())
    }

    fn place_like(&mut self, piece: PieceNumber, earlier: PieceNumber) {
        let place = self.written.places.get(earlier as usize).copied().flatten();
        self.place(piece, place);
    }

    fn place(&mut self, piece: PieceNumber, place: Option<ChunkRef>) {
        let at = piece as usize;
        let places = &mut self.written.places;
        // Pieces come in order except for those of batches, which come when their batch is full.
        if at >= places.len() {
            places.resize(at + 1, None);
        }
        places[at] = place;
    }

    fn emit(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let offset = self.out.position();
        self.out.write_all(bytes).map_err(|source| BuildError::Write { offset, source })
    }
}
