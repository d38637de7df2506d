//! Free space in the inode area.

use crate::layout::BLOCK_SIZE;
use crate::layout::v6::SLOT_SIZE;

const SLOTS_PER_BLOCK: usize = (BLOCK_SIZE / SLOT_SIZE) as usize;

/// Hands out space from the start of the area on, and the gaps that alignment leaves.
pub(super) struct Space {
    /// Where the unused rest of the area begins: a multiple of the slot size.
    end: u64,
    /// Offsets of gaps by their size in slots, each within one block.
    gaps: Vec<Vec<u64>>,
}

impl Space {
    pub(super) fn new() -> Self {
        Self { end: 0, gaps: vec![Vec::new(); SLOTS_PER_BLOCK] }
    }

    /// Space that may cross blocks.
    pub(super) fn take(&mut self, size: u64) -> u64 {
        self.take_gap(size).unwrap_or_else(|| self.advance(size))
    }

    /// Space within one block, for at most a block.
    pub(super) fn take_within_block(&mut self, size: u64) -> u64 {
        self.take_gap(size).unwrap_or_else(|| {
            if BLOCK_SIZE - self.end % BLOCK_SIZE < size {
                self.align();
            }
            self.advance(size)
        })
    }

    /// Whole blocks: as many as `size` bytes need.
    pub(super) fn take_blocks(&mut self, size: u64) -> u64 {
        if size == 0 {
            return 0;
        }
        self.align();
        self.advance(size.next_multiple_of(BLOCK_SIZE))
    }

    /// The size of the area in bytes, whole blocks.
    pub(super) fn size(&self) -> u64 {
        self.end.next_multiple_of(BLOCK_SIZE)
    }

    fn advance(&mut self, size: u64) -> u64 {
        let start = self.end;
        self.end += size.next_multiple_of(SLOT_SIZE);
        start
    }

    /// Goes to the next block boundary and remembers the gap.
    fn align(&mut self) {
        let start = self.end;
        self.end = start.next_multiple_of(BLOCK_SIZE);
        self.add_gap(start, self.end - start);
    }

    /// The smallest gap that is large enough.
    fn take_gap(&mut self, size: u64) -> Option<u64> {
        let slots = usize::try_from(size.div_ceil(SLOT_SIZE)).ok()?;
        let found = (slots..SLOTS_PER_BLOCK).find(|&slots| !self.gaps[slots].is_empty())?;
        let start = self.gaps[found].pop()?;
        self.add_gap(start + slots as u64 * SLOT_SIZE, (found - slots) as u64 * SLOT_SIZE);
        Some(start)
    }

    fn add_gap(&mut self, start: u64, size: u64) {
        let slots = (size / SLOT_SIZE) as usize;
        if slots > 0 {
            self.gaps[slots].push(start);
        }
    }
}
