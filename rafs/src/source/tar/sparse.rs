//! Sparse files: which parts of a file are stored.
//!
//! GNU tar has written the map of a file's segments in four ways: in the header and blocks behind it (old GNU format),
//! in PAX records one by one (0.0) or as a list (0.1), and as decimal lines in front of the content (1.0). All of them
//! list segments in order, and the stored content is the segments' data one after the other.

use super::error::Problem;
use super::header::{BLOCK_BYTES, HeaderBlock, number};
use super::pax::decimal;

/// The most segments of one file that are read; they take 16 MiB of memory.
const SEGMENTS_LIMIT: usize = 1 << 20;

/// Stored data of a sparse file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Segment {
    /// Where in the file, in bytes.
    pub(super) offset: u64,
    /// How much, in bytes.
    pub(super) length: u64,
}

/// Reads the old GNU format's map: four segments in the header, 21 in each block that follows. `next_block` gives those
/// blocks.
pub(super) fn old_gnu_map<E: From<Problem>>(
    header: &HeaderBlock,
    mut next_block: impl FnMut() -> Result<[u8; BLOCK_BYTES], E>,
) -> Result<Vec<Segment>, E> {
    let mut segments = Vec::new();
    let mut more = decode_slots(header.sparse_segments(), &mut segments)? && header.sparse_is_extended();
    while more {
        /// Bytes of the block that are segments; the byte behind them says whether another block follows.
        const SLOTS_BYTES: usize = 21 * SLOT_BYTES;
        let block = next_block()?;
        more = decode_slots(&block[..SLOTS_BYTES], &mut segments)? && block[SLOTS_BYTES] != 0;
    }
    Ok(segments)
}

/// Two numbers of 12 bytes: offset and length.
const SLOT_BYTES: usize = 24;

/// Appends the segments up to the first unused slot, and says whether all slots were used.
fn decode_slots(slots: &[u8], segments: &mut Vec<Segment>) -> Result<bool, Problem> {
    for slot in slots.chunks_exact(SLOT_BYTES) {
        let (offset, length) = slot.split_at(SLOT_BYTES / 2);
        if offset[0] == 0 || length[0] == 0 {
            return Ok(false);
        }
        let decode = |field: &'static str, bytes: &[u8]| {
            number(bytes).and_then(|value| u64::try_from(value).ok()).ok_or_else(|| Problem::Number {
                field,
                value: bytes.into(),
                expected: "an octal or base-256 number that is not negative",
            })
        };
        push(
            segments,
            Segment { offset: decode("sparse offset", offset)?, length: decode("sparse length", length)? },
        )?;
    }
    Ok(true)
}

/// Reads the map of version 1.0, the start of the content, up to the end of its last block. `next_block` gives the
/// content's blocks.
pub(super) fn map_in_content<E: From<Problem>>(
    next_block: impl FnMut() -> Result<[u8; BLOCK_BYTES], E>,
) -> Result<Vec<Segment>, E> {
    let mut lines = Lines { next_block, block: [0; BLOCK_BYTES], position: BLOCK_BYTES };
    let count = lines.number()?;
    if count > SEGMENTS_LIMIT as u64 {
        return Err(too_many().into());
    }
    let mut segments = Vec::new();
    for _ in 0..count {
        let offset = lines.number()?;
        segments.push(Segment { offset, length: lines.number()? });
    }
    Ok(segments)
}

/// Decimal numbers, each ended by a newline, across blocks.
struct Lines<F> {
    next_block: F,
    block: [u8; BLOCK_BYTES],
    position: usize,
}

impl<F> Lines<F> {
    fn number<E: From<Problem>>(&mut self) -> Result<u64, E>
    where
        F: FnMut() -> Result<[u8; BLOCK_BYTES], E>,
    {
        const WRONG: Problem = Problem::Sparse("the map is not decimal numbers of at most 64 bits on lines");
        /// Digits of the largest 64-bit number.
        const DIGITS_LIMIT: usize = 20;
        let mut digits = [0; DIGITS_LIMIT];
        let mut length = 0;
        loop {
            if self.position == BLOCK_BYTES {
                self.block = (self.next_block)()?;
                self.position = 0;
            }
            let byte = self.block[self.position];
            self.position += 1;
            if byte == b'\n' {
                return decimal(&digits[..length]).ok_or_else(|| WRONG.into());
            }
            *digits.get_mut(length).ok_or(WRONG)? = byte;
            length += 1;
        }
    }
}

fn push(segments: &mut Vec<Segment>, segment: Segment) -> Result<(), Problem> {
    if segments.len() == SEGMENTS_LIMIT {
        return Err(too_many());
    }
    segments.push(segment);
    Ok(())
}

fn too_many() -> Problem {
    Problem::Sparse("more than 1048576 segments")
}

/// Checks that segments are in order, within the file, and add up to the stored content. Empty ones, which GNU tar puts
/// at the end of a file, are dropped.
pub(super) fn checked(
    mut segments: Vec<Segment>,
    real_size: u64,
    stored: u64,
) -> Result<Vec<Segment>, Problem> {
    let mut end = 0;
    let mut total = 0_u64;
    for segment in &segments {
        if segment.offset < end {
            return Err(Problem::Sparse("segments overlap or are out of order"));
        }
        end = segment
            .offset
            .checked_add(segment.length)
            .ok_or(Problem::Sparse("a segment ends beyond 64 bits"))?;
        total += segment.length;
    }
    if end > real_size {
        return Err(Problem::Sparse("a segment ends beyond the file"));
    }
    if total != stored {
        return Err(Problem::Sparse("the segments' lengths do not add up to the stored size"));
    }
    segments.retain(|segment| segment.length > 0);
    Ok(segments)
}
