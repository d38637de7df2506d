//! A tar stream, changed anyhow or of any bytes, plain and compressed.

#![no_main]

use fuzz::archive::{Wrapping, mend_checksums};
use fuzz::{exercise, patch, seed};
use libfuzzer_sys::fuzz_target;
use rafs::source::SourceError;

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, bytes)) = bytes.split_first() else { return };
    let Some(mut archive) = patch::bytes(bytes, seed::archives()) else { return };
    if choice & 1 == 1 {
        mend_checksums(&mut archive);
    }
    let archive = Wrapping::of(choice >> 1).wrap(archive);
    if let Err(SourceError::Tar(error)) = exercise::archive(&archive) {
        assert!(is_compressed(&archive) || error.offset <= archive.len() as u64, "{error}");
    }
});

/// Whether offsets count other bytes than those of the archive.
fn is_compressed(archive: &[u8]) -> bool {
    matches!(archive, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [_, 0x2a, 0x4d, 0x18, ..])
}
