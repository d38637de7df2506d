//! One 512-byte header block.
//!
//! | offset | size | field | in | meaning |
//! |---|---|---|---|---|
//! | 0 | 100 | name | all | path, ended by NUL or by the field |
//! | 100 | 8 | mode | all | permissions, octal |
//! | 108 | 8 | uid | all | owner |
//! | 116 | 8 | gid | all | group |
//! | 124 | 12 | size | all | bytes of content that follow |
//! | 136 | 12 | mtime | all | seconds since 1970 |
//! | 148 | 8 | chksum | all | sum of the block's bytes, this field as spaces |
//! | 156 | 1 | typeflag | all | what the entry is |
//! | 157 | 100 | linkname | all | target of a link |
//! | 257 | 8 | magic, version | not V7 | `ustar\0` `00`, or `ustar  \0` of GNU |
//! | 265 | 64 | uname, gname | not V7 | not used: images count by number |
//! | 329 | 8 | devmajor | not V7 | device number |
//! | 337 | 8 | devminor | not V7 | device number |
//! | 345 | 155 | prefix | ustar | goes before name, with a slash; 131 bytes in star's variant |
//! | 386 | 96 | sparse | GNU | first four segments of a sparse file |
//! | 482 | 1 | isextended | GNU | whether a block with more segments follows |
//! | 483 | 12 | realsize | GNU | size of a sparse file with its holes |
//! | 508 | 4 | | star | `tar\0` |
//!
//! Numbers are octal digits between spaces or NULs, or, with the first bit set, big-endian two's complement (base-256).

use super::error::Problem;

/// The unit of a tar stream, in bytes.
pub(super) const BLOCK_BYTES: usize = 512;

/// The dialect of a header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Dialect {
    /// Unix version 7: no device numbers, no prefix.
    V7,
    /// POSIX ustar and PAX.
    Ustar,
    /// ustar as Schily's star extends it: a shorter prefix, then times.
    Star,
    /// GNU's and old GNU's: no prefix, but times and sparse segments.
    Gnu,
}

/// A header block.
pub(super) struct HeaderBlock {
    block: [u8; BLOCK_BYTES],
    format: Dialect,
}

impl HeaderBlock {
    /// Takes a block that is not all zeros.
    pub(super) fn parse(block: [u8; BLOCK_BYTES]) -> Result<Self, Problem> {
        verify_checksum(&block)?;
        let format = match &block[257..265] {
            [b'u', b's', b't', b'a', b'r', b' ', b' ', 0] => Dialect::Gnu,
            [b'u', b's', b't', b'a', b'r', 0, ..] if &block[508..] == b"tar\0" => Dialect::Star,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Dialect::Ustar,
            _ => Dialect::V7,
        };
        Ok(Self { block, format })
    }

    pub(super) fn typeflag(&self) -> u8 {
        self.block[156]
    }

    /// The path that this block alone gives; may be empty.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.block[..100]);
        let prefix = match self.format {
            Dialect::Ustar => until_nul(&self.block[345..500]),
            Dialect::Star => until_nul(&self.block[345..476]),
            Dialect::V7 | Dialect::Gnu => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// The target that this block alone gives; may be empty.
    pub(super) fn link(&self) -> &[u8] {
        until_nul(&self.block[157..257])
    }

    /// Permission bits; file type bits, which some writers add, are cut off.
    pub(super) fn permissions(&self) -> Result<u16, Problem> {
        Ok((self.field("mode", 100, 8)? & 0o7777) as u16)
    }

    pub(super) fn uid(&self) -> Result<u32, Problem> {
        self.unsigned_32("uid", 108)
    }

    pub(super) fn gid(&self) -> Result<u32, Problem> {
        self.unsigned_32("gid", 116)
    }

    /// Bytes of content, as stored.
    pub(super) fn size(&self) -> Result<u64, Problem> {
        self.unsigned_64("size", 124)
    }

    /// Seconds since 1970.
    pub(super) fn mtime(&self) -> Result<i64, Problem> {
        self.field("mtime", 136, 12)
    }

    pub(super) fn device_major(&self) -> Result<u32, Problem> {
        if self.format == Dialect::V7 { Ok(0) } else { self.unsigned_32("devmajor", 329) }
    }

    pub(super) fn device_minor(&self) -> Result<u32, Problem> {
        if self.format == Dialect::V7 { Ok(0) } else { self.unsigned_32("devminor", 337) }
    }

    /// Whether this is GNU's dialect, which alone has the following fields.
    pub(super) fn is_gnu(&self) -> bool {
        self.format == Dialect::Gnu
    }

    /// GNU's first segments of a sparse file, undecoded.
    pub(super) fn sparse_segments(&self) -> &[u8] {
        &self.block[386..482]
    }

    /// Whether a block with more segments follows.
    pub(super) fn sparse_is_extended(&self) -> bool {
        self.block[482] != 0
    }

    /// Size of a sparse file with its holes.
    pub(super) fn sparse_real_size(&self) -> Result<u64, Problem> {
        self.unsigned_64("realsize", 483)
    }

    fn field(&self, name: &'static str, offset: usize, size: usize) -> Result<i64, Problem> {
        let bytes = &self.block[offset..offset + size];
        number(bytes).ok_or_else(|| bad_number(name, bytes, "an octal or base-256 number of at most 63 bits"))
    }

    fn unsigned_32(&self, name: &'static str, offset: usize) -> Result<u32, Problem> {
        u32::try_from(self.field(name, offset, 8)?)
            .map_err(|_| bad_number(name, &self.block[offset..offset + 8], "a number of 0 to 4294967295"))
    }

    fn unsigned_64(&self, name: &'static str, offset: usize) -> Result<u64, Problem> {
        u64::try_from(self.field(name, offset, 12)?)
            .map_err(|_| bad_number(name, &self.block[offset..offset + 12], "a number that is not negative"))
    }
}

fn bad_number(field: &'static str, value: &[u8], expected: &'static str) -> Problem {
    Problem::Number { field, value: value.into(), expected }
}

/// Compares the checksum with the sum of unsigned bytes, as POSIX has it, and of signed bytes, as some old writers.
fn verify_checksum(block: &[u8; BLOCK_BYTES]) -> Result<(), Problem> {
    const FIELD: std::ops::Range<usize> = 148..156;
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    let computed = sum(block) - sum(&block[FIELD]) + FIELD.len() as u32 * u32::from(b' ');
    let stored =
        number(&block[FIELD]).ok_or_else(|| bad_number("chksum", &block[FIELD], "an octal number"))?;
    let outside = block[..FIELD.start].iter().chain(&block[FIELD.end..]);
    // A byte from 128 counts for 256 less when it is taken as signed.
    let signed = || i64::from(computed) - 256 * outside.filter(|&&byte| byte >= 128).count() as i64;
    if stored == i64::from(computed) || stored == signed() {
        Ok(())
    } else {
        Err(Problem::Checksum { stored, computed })
    }
}

/// Decodes octal or base-256. A field of nothing but spaces and NULs is 0.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    match field {
        [first, rest @ ..] if first & 0x80 != 0 => base_256(first & 0x7f, rest),
        _ => octal(field),
    }
}

/// Big-endian two's complement, of which `first` lost its top bit to the marker and repeats the next as the sign.
fn base_256(first: u8, rest: &[u8]) -> Option<i64> {
    let sign_extended = if first & 0x40 != 0 { first | 0x80 } else { first };
    rest.iter().try_fold(i64::from(sign_extended as i8), |value, &byte| {
        value.checked_mul(256)?.checked_add(i64::from(byte))
    })
}

fn octal(field: &[u8]) -> Option<i64> {
    let is_space = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_space(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(is_space).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0_i64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// The bytes before the first NUL.
pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or(bytes)
}
