//! A file that is mapped to be written.

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::{MmapOptions, MmapRaw};

/// See the module. Whoever has it writes there alone; the file may be written elsewhere besides.
pub(crate) struct Pages(MmapRaw);

impl Pages {
    /// Maps `bytes` bytes of a file that nobody shortens.
    pub(crate) fn map(file: &File, bytes: usize) -> io::Result<Self> {
        if file.metadata()?.len() < bytes as u64 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is too short"));
        }
        Ok(Self(MmapOptions::new().len(bytes).map_raw(file)?))
    }

    /// A part of it.
    pub(crate) fn part(&mut self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.0.len(), "a part of the mapping");
        // SAFETY: the bytes are within the mapping, which lives as long as this. Only this value gives out slices of it, one
        // at a time. What is written to the file by system calls is written by the kernel, and to other parts.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().add(range.start), range.len()) }
    }
}
