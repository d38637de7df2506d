//! Giving parts of a blob stream the digests that they should have.

use rafs::layout::toc::{self, TAR_HEADER_SIZE, TocEntry};
use sha2::{Digest as _, Sha256};
use zerocopy::{FromBytes, IntoBytes};

/// The largest part that is decompressed to mend its digest, in bytes.
const LARGEST: usize = 1 << 20;

/// Gives a table of contents (whole entries, without the tar header) the digests of the parts that it names in `stream`.
pub fn mend_table(table: &mut [u8], stream: &[u8]) {
    let Ok(entries) = <[TocEntry]>::mut_from_bytes(table) else { return };
    for entry in entries {
        let start = entry.compressed_offset.get() as usize;
        let stored = start.checked_add(entry.compressed_size.get() as usize);
        let Some(stored) = stored.and_then(|end| stream.get(start..end)) else { continue };
        let content = match entry.flags.get() {
            toc::FLAG_ZSTD => zstd::bulk::decompress(stored, LARGEST).unwrap_or_default(),
            _ => stored.to_vec(),
        };
        entry.uncompressed_digest = Sha256::digest(&content).into();
    }
}

/// The tar header that follows a table of contents of this size in bytes.
pub fn table_header(size: usize) -> [u8; TAR_HEADER_SIZE] {
    let mut header = [0; TAR_HEADER_SIZE];
    header[..toc::TOC.len()].copy_from_slice(toc::TOC.as_bytes());
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar  \0");
    header[148..156].fill(b' ');
    let sum = header.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    header[148..156].copy_from_slice(format!("{sum:07o}\0").as_bytes());
    header
}

/// Mends the table of contents at the end of a stream, and what the bootstrap's first blob says of it.
pub fn mend(bootstrap: &mut [u8], stream: &mut [u8]) -> Option<()> {
    let end = stream.len().checked_sub(TAR_HEADER_SIZE)?;
    let size = std::str::from_utf8(stream[end..].get(124..135)?).ok()?;
    let start = end.checked_sub(usize::from_str_radix(size, 8).ok()?)?;
    let (parts, table) = stream.split_at_mut(start);
    mend_table(&mut table[..end - start], parts);
    let digest: [u8; 32] = Sha256::digest(&table).into();
    // The blob table's offset is in the extension superblock; the digest is in an entry.
    let offset = u64::from_le_bytes(bootstrap.get(1160..1168)?.try_into().ok()?) as usize;
    let place = bootstrap.get_mut(offset.checked_add(136)?..offset.checked_add(168)?)?;
    place.copy_from_slice(digest.as_bytes());
    Some(())
}
