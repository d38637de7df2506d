//! Tar archives: made, mended, and compressed.

use std::io::Write;
use std::ops::Range;

/// Size in bytes of a header, and the unit of content.
pub const BLOCK: usize = 512;

const SIZE: Range<usize> = 124..136;
const CHECKSUM: Range<usize> = 148..156;
const TYPEFLAG: usize = 156;
const LINK: Range<usize> = 157..257;

/// A ustar entry.
pub fn entry(path: &str, typeflag: u8, link: &str, content: &[u8]) -> Vec<u8> {
    let mut block = [0; BLOCK];
    block[..path.len()].copy_from_slice(path.as_bytes());
    block[100..124].copy_from_slice(b"0000644\x000000001\x000000002\0");
    block[SIZE].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    block[136..148].copy_from_slice(b"14524733405\0");
    block[TYPEFLAG] = typeflag;
    block[LINK][..link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[329..345].copy_from_slice(b"0000001\x000000003\0");
    put_checksum(&mut block);
    let mut bytes = block.to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// A PAX header with these records.
pub fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut content = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        content.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
    }
    entry("pax", b'x', "", &content)
}

/// Gives blocks that look like headers the checksums that they should have: a fuzzer does not guess them.
pub fn mend_checksums(archive: &mut [u8]) {
    for block in archive.chunks_exact_mut(BLOCK) {
        if block[CHECKSUM].starts_with(b"0") {
            put_checksum(block);
        }
    }
}

fn put_checksum(block: &mut [u8]) {
    block[CHECKSUM].fill(b' ');
    let sum = block.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// How an archive is presented.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wrapping {
    /// As it is.
    Plain,
    /// As two gzip members.
    Gzip,
    /// As two zstd frames.
    Zstd,
    /// As if its bytes were a gzip stream.
    BrokenGzip,
    /// As if its bytes were a zstd stream.
    BrokenZstd,
}

impl Wrapping {
    /// One of them.
    pub fn of(number: u8) -> Self {
        match number % 8 {
            0 => Self::Gzip,
            1 => Self::Zstd,
            2 => Self::BrokenGzip,
            3 => Self::BrokenZstd,
            _ => Self::Plain,
        }
    }

    /// Presents `archive` so.
    pub fn wrap(self, archive: Vec<u8>) -> Vec<u8> {
        let (first, second) = archive.split_at(archive.len() / 2);
        match self {
            Self::Plain => archive,
            Self::Gzip => [gzip(first), gzip(second)].concat(),
            Self::Zstd => [zstd(first), zstd(second)].concat(),
            // The magic numbers are given, the rest is left to the fuzzer.
            Self::BrokenGzip => [&[0x1f, 0x8b, 8], &archive[..]].concat(),
            Self::BrokenZstd => [&[0x28, 0xb5, 0x2f, 0xfd], &archive[..]].concat(),
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory takes all")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).expect("memory takes all")
}
