//! A file that is mapped to be written.

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::{MmapOptions, MmapRaw};

const PAGE_BYTES: usize = 4096;

/// See the module. Whoever has it writes there alone; the file may be written elsewhere besides.
pub(crate) struct Pages(MmapRaw);

impl Pages {
    /// Maps `bytes` bytes of a file that nobody shortens.
    pub(crate) fn map(file: &File, bytes: usize) -> io::Result<Self> {
        if file.metadata()?.len() < bytes as u64 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is too short"));
        }
        let mut pages = Self(MmapOptions::new().len(bytes).map_raw(file)?);
        pages.bring_in();
        Ok(pages)
    }

    /// Has all of it in memory, to be written: what is not, the kernel does not bring in for who is being killed, and a request that
    /// it copies there then fails with EIO.
    fn bring_in(&mut self) {
        for at in (0..self.0.len()).step_by(PAGE_BYTES) {
            let byte = &mut self.part(at..at + 1)[0];
            // Written as it is, for the sake of it.
            *byte = std::hint::black_box(*byte);
        }
        // For good, where that is allowed.
        let _ = self.0.lock();
    }

    /// A part of it.
    pub(crate) fn part(&mut self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.0.len(), "a part of the mapping");
        // SAFETY: the bytes are within the mapping, which lives as long as this. Only this value gives out slices of it, one
        // at a time. What is written to the file by system calls is written by the kernel, and to other parts.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().add(range.start), range.len()) }
    }
}
