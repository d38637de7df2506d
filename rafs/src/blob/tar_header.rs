//! The 512-byte GNU tar headers that follow each part of a blob stream.

use crate::layout::toc::TAR_HEADER_SIZE;

const SIZE_FIELD: std::ops::Range<usize> = 124..136;
const MTIME_FIELD: std::ops::Range<usize> = 136..148;
const CHECKSUM_FIELD: std::ops::Range<usize> = 148..156;
const TYPE_FIELD: usize = 156;
const MAGIC_FIELD: std::ops::Range<usize> = 257..265;
const GNU_MAGIC: &[u8; 8] = b"ustar  \0";

/// Sizes from here on do not fit 11 octal digits.
const BINARY_SIZE: u64 = 1 << 33;

/// A header for a part of at most 100 name bytes.
pub(super) fn encode(name: &str, size: u64) -> [u8; TAR_HEADER_SIZE] {
    let mut header = [0; TAR_HEADER_SIZE];
    header[..name.len()].copy_from_slice(name.as_bytes());
    if size < BINARY_SIZE {
        octal(&mut header[SIZE_FIELD], size);
    } else {
        header[SIZE_FIELD.start] = 0x80;
        header[SIZE_FIELD.end - 8..SIZE_FIELD.end].copy_from_slice(&size.to_be_bytes());
    }
    octal(&mut header[MTIME_FIELD], 0);
    header[TYPE_FIELD] = b'0';
    header[MAGIC_FIELD].copy_from_slice(GNU_MAGIC);
    let sum = checksum(&header);
    octal(&mut header[CHECKSUM_FIELD], sum);
    header
}

/// Name and size of a regular file's header; `None` where the bytes are no such header.
pub(super) fn decode(header: &[u8; TAR_HEADER_SIZE]) -> Option<(&[u8], u64)> {
    let regular = matches!(header[TYPE_FIELD], b'0' | 0);
    if header[MAGIC_FIELD] != *GNU_MAGIC
        || !regular
        || parse_octal(&header[CHECKSUM_FIELD])? != checksum(header)
    {
        return None;
    }
    let name = header[..100].split(|&byte| byte == 0).next()?;
    let size = &header[SIZE_FIELD];
    let size = match size.split_first_chunk::<4>() {
        Some(([0x80, 0, 0, 0], rest)) => u64::from_be_bytes(rest.try_into().ok()?),
        _ => parse_octal(size)?,
    };
    Some((name, size))
}

/// The sum of all bytes, with the checksum itself as spaces.
fn checksum(header: &[u8; TAR_HEADER_SIZE]) -> u64 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    sum(header) - sum(&header[CHECKSUM_FIELD]) + CHECKSUM_FIELD.len() as u64 * u64::from(b' ')
}

/// Writes zero-padded octal digits and a NUL.
fn octal(field: &mut [u8], mut value: u64) {
    let digits = field.len() - 1;
    for byte in field[..digits].iter_mut().rev() {
        *byte = b'0' + (value & 7) as u8;
        value >>= 3;
    }
}

fn parse_octal(field: &[u8]) -> Option<u64> {
    let text = field.trim_ascii_start().split(|&byte| byte == 0 || byte == b' ').next()?;
    text.iter().try_fold(0u64, |value, &byte| {
        let digit = (b'0'..=b'7').contains(&byte).then(|| u64::from(byte - b'0'))?;
        value.checked_mul(8)?.checked_add(digit)
    })
}
