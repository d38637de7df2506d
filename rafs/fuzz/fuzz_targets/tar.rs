//! Reads any bytes as a tar stream, compressed or not.
//!
//! The target mends header checksums first, in bytes that are not compressed, since a fuzzer does not guess them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rafs::source::tar::TarSource;
use rafs::source::{EntryKind, Source, SourceError};

const BLOCK: usize = 512;
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// Holes may have any size, so reading stops after this many bytes of a file.
const MAX_CONTENT: u64 = 64 << 10;

fuzz_target!(|bytes: &[u8]| {
    let Some((&mend, archive)) = bytes.split_first() else { return };
    let mut archive = archive.to_vec();
    if mend & 1 == 1 {
        archive.chunks_exact_mut(BLOCK).for_each(mend_checksum);
    }
    if let Err(SourceError::Tar(error)) = read(&archive) {
        assert!(is_compressed(&archive) || error.offset <= archive.len() as u64, "{error}");
    }
});

/// Whether offsets count other bytes than those of the archive.
fn is_compressed(archive: &[u8]) -> bool {
    matches!(archive, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [_, 0x2a, 0x4d, 0x18, ..])
}

fn read(archive: &[u8]) -> Result<(), SourceError> {
    let mut source = TarSource::new(archive);
    let mut buffer = [0; 8192];
    while let Some(entry) = source.next_entry()? {
        assert!(!entry.path.is_empty());
        assert!(entry.metadata.mtime.nanoseconds < 1_000_000_000);
        let mut length = 0;
        while length < MAX_CONTENT {
            match source.read(&mut buffer)? {
                0 => break,
                count => length += count as u64,
            }
        }
        match entry.kind {
            EntryKind::Regular { size } => {
                assert!(length == size || (length >= MAX_CONTENT && length < size))
            }
            _ => assert_eq!(length, 0),
        }
    }
    Ok(())
}

/// Gives a block that looks like a header the checksum that it should have.
fn mend_checksum(block: &mut [u8]) {
    if !block[CHECKSUM].starts_with(b"0") {
        return;
    }
    block[CHECKSUM].fill(b' ');
    let sum = block.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
