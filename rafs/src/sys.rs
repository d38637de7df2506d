//! The crate's one system call that needs `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps a whole file for reading.
///
/// The file must not be changed or shortened while it is mapped. Bootstraps are written under another name and renamed
/// into place, never changed.
pub(crate) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is read-only and private. Nothing assumes that its bytes are valid as anything but bytes, and
    // whoever shortens the file behind our back gets a SIGBUS here, which is what the documentation says.
    unsafe { Mmap::map(file) }
}
