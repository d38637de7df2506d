//! Has the disk read what a reader in order will need next. The kernel does that too, but by 128 KiB, and not at all where files are
//! not read in quite the order in which they are stored.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use nix::unistd::{Whence, lseek};
use rustix::fs::{Advice, fadvise};

/// Bytes that are read ahead at first, and at most: what a disk brings while a few of its answers are waited for.
const WINDOW: (u64, u64) = (256 << 10, 8 << 20);

/// How far a reader may leap, or go back, and still be one in order: over a file, or a small directory.
const LEAP: u64 = 1 << 20;

/// The kernel reads no more for one request than its own read-ahead, which is so much unless somebody has changed it.
const REQUEST: u64 = 128 << 10;

/// Readers of one blob that are told apart; of more, those that came last.
const READERS: usize = 8;

/// The readers of a blob's file.
#[derive(Debug, Default)]
pub(super) struct Ahead(Mutex<Vec<Reader>>);

#[derive(Clone, Copy, Debug)]
struct Reader {
    at: u64,
    /// Where what was asked for ahead of it ends.
    asked: u64,
    window: u64,
}

impl Ahead {
    /// Somebody reads `range` of the file.
    pub(super) fn reads(&self, file: &File, range: &Range<u64>) {
        let next = next(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), range);
        let Some(Range { start, end }) = next else { return };
        // What is not cached is a hole: to read it would only take memory.
        let end = end.min(data_end(file, start));
        let mut at = start;
        while at < end {
            let len = REQUEST.min(end - at);
            // It is only a wish.
            let _ = fadvise(file, at, NonZeroU64::new(len), Advice::WillNeed);
            at += len;
        }
    }
}

/// What is to be read ahead for who reads `range`.
fn next(readers: &mut Vec<Reader>, range: &Range<u64>) -> Option<Range<u64>> {
    let belongs = |reader: &Reader| {
        (reader.at.saturating_sub(LEAP)..=reader.at.max(reader.asked).saturating_add(LEAP))
            .contains(&range.start)
    };
    let Some(known) = readers.iter().position(belongs) else {
        readers.insert(0, Reader { at: range.end, asked: range.end, window: WINDOW.0 / 2 });
        readers.truncate(READERS);
        return None;
    };
    readers[..=known].rotate_right(1);
    let reader = readers.first_mut()?;
    // It may have gone back a little.
    reader.at = reader.at.max(range.end);
    reader.asked = reader.asked.max(reader.at);
    if reader.asked - reader.at > reader.window / 2 {
        return None;
    }
    reader.window = (reader.window * 2).min(WINDOW.1);
    let from = std::mem::replace(&mut reader.asked, reader.at.saturating_add(reader.window));
    Some(from..reader.asked)
}

/// Where the data that begins at `start` ends: at `start` itself, if there is none.
fn data_end(file: &File, start: u64) -> u64 {
    let Ok(offset) = i64::try_from(start) else { return start };
    lseek(file, offset, Whence::SeekHole).map_or(start, i64::unsigned_abs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: u64 = 64 << 10;

    /// What is asked for when somebody reads so many bytes at these places.
    fn asked(places: impl IntoIterator<Item = u64>) -> Vec<Range<u64>> {
        let mut readers = Vec::new();
        places.into_iter().filter_map(|place| next(&mut readers, &(place..place + STEP))).collect()
    }

    #[test]
    fn a_reader_in_order_has_more_and_more_read_ahead_each_byte_once() {
        let asked = asked((0..1024).map(|step| step * STEP));
        assert!(asked.windows(2).all(|pair| pair[0].end == pair[1].start), "{asked:?}");
        let sizes: Vec<u64> = asked.iter().map(|range| range.end - range.start).collect();
        assert!(sizes.iter().all(|size| *size <= WINDOW.1), "{sizes:?}");
        assert!(asked.last().unwrap().end >= 1024 * STEP + WINDOW.1 / 2, "it stays ahead: {asked:?}");
        // Not with each read.
        assert!(asked.len() < 40, "{asked:?}");
    }

    #[test]
    fn who_reads_here_and_there_has_nothing_read_ahead() {
        assert_eq!(asked((0..100).map(|step| step * 37 % 100 * (4 << 20))), []);
    }

    #[test]
    fn a_file_that_is_left_out_or_read_later_does_not_matter() {
        // Always the second of two before the first.
        let asked = asked((0..1024).map(|step| (step ^ 1) * STEP));
        assert!(asked.last().unwrap().end >= 1024 * STEP + WINDOW.1 / 2, "{asked:?}");
    }

    #[test]
    fn two_readers_of_a_blob_are_told_apart() {
        let asked = asked((0..200).flat_map(|step| [step * STEP, (1 << 30) + step * STEP]));
        assert!(
            asked.iter().any(|range| range.end < 1 << 30) && asked.iter().any(|range| range.end > 1 << 30)
        );
        assert!(asked.len() < 60, "{asked:?}");
    }

    #[test]
    fn holes_are_not_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(data_end(&file, 4096), 4096);
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 8192], 65_536).unwrap();
        assert_eq!(data_end(&file, 65_536), 65_536 + 8192);
        let ahead = Ahead::default();
        (0..16).for_each(|step| ahead.reads(&file, &(step * STEP..(step + 1) * STEP)));
    }
}
