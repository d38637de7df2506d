//! PAX extended headers: records of `LENGTH KEYWORD=VALUE\n` before the entry that they describe.
//!
//! Of the keywords of POSIX, GNU tar, star and libarchive those count that say what an image keeps: path, linkpath,
//! size, uid, gid, mtime, extended attributes and sparse maps. All others (names of owners, access times, comments,
//! ACLs as text) are passed over. Keywords of `SCHILY.xattr.` are taken as they stand, as container runtimes do: the
//! `%3D` that GNU tar writes for an equals sign in an attribute's name stays.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::error::Problem;
use super::sparse::Segment;
use crate::tree::{Time, Xattrs};

/// The size limit of one extended header. An entry's attributes and path fit with room to spare: Linux lists at most
/// 64 KiB of attribute names, and the container runtimes' own reader has the same limit.
pub(super) const HEADER_LIMIT_BYTES: u64 = 1 << 20;

/// libarchive pads its base64 or not, by version.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What both global and local headers may set. Only these hold from a global header: the rest describes one file, and
/// repeating it for every entry would let a small archive grow without bound in memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers {
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
}

/// What extended headers say about one entry.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) numbers: Numbers,
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) xattrs: Xattrs,
    pub(super) sparse: SparseRecords,
}

/// GNU's records for sparse files, of versions 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    /// The file's name, where `path` names a placeholder for readers that do not know sparse files.
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// The segments of 0.0, one by one, or of 0.1, in one list.
    pub(super) segments: Option<Vec<Segment>>,
    /// An offset of 0.0 whose length has not come yet.
    pending_offset: Option<u64>,
}

impl Records {
    /// Records over those that hold for all entries.
    pub(super) fn new(global: Numbers) -> Self {
        Self { numbers: global, ..Self::default() }
    }

    /// Adds a header's records. On failure says at which of `bytes`.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<(), (usize, Problem)> {
        for_each(bytes, |key, value| self.set(key, value))
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Problem> {
        match key {
            b"path" => self.path = name(key, value)?,
            b"linkpath" => self.link = name(key, value)?,
            _ => {
                if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(key, attribute.into(), value.into())?;
                } else if let Some(attribute) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let decoded = BASE64.decode(value);
                    let decoded = decoded.map_err(|_| bad_value(key, value, "base64"))?;
                    self.set_xattr(key, percent_decoded(attribute), decoded.into())?;
                } else if let Some(field) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(key, field, value)?;
                } else {
                    self.numbers.set(key, value)?;
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, key: &[u8], attribute: Box<[u8]>, value: Box<[u8]>) -> Result<(), Problem> {
        if attribute.is_empty() || attribute.contains(&0) {
            return Err(bad_value(key, &value, "an attribute's name, without NUL, in the keyword"));
        }
        self.xattrs.insert(attribute, value);
        Ok(())
    }
}

impl Numbers {
    /// Adds a global header's records. On failure says at which of `bytes`.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<(), (usize, Problem)> {
        for_each(bytes, |key, value| self.set(key, value))
    }

    /// An empty value takes back what an earlier record said.
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Problem> {
        let id = || match value {
            b"" => Ok(None),
            _ => decimal(value)
                .and_then(|id| u32::try_from(id).ok())
                .map(Some)
                .ok_or_else(|| bad_value(key, value, "a decimal number of 0 to 4294967295")),
        };
        match key {
            b"size" => self.size = optional_decimal(key, value)?,
            b"uid" => self.uid = id()?,
            b"gid" => self.gid = id()?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => {
                let time = time(value).ok_or_else(|| bad_value(key, value, "decimal seconds since 1970"))?;
                self.mtime = Some(time);
            }
            _ => {}
        }
        Ok(())
    }
}

impl SparseRecords {
    /// Whether anything says that the file is sparse.
    pub(super) fn is_given(&self) -> bool {
        self.major.is_some() || self.real_size.is_some() || self.segments.is_some() || self.name.is_some()
    }

    fn set(&mut self, key: &[u8], field: &[u8], value: &[u8]) -> Result<(), Problem> {
        match field {
            b"major" => self.major = optional_decimal(key, value)?,
            b"minor" => self.minor = optional_decimal(key, value)?,
            b"name" => self.name = name(key, value)?,
            b"size" | b"realsize" => self.real_size = optional_decimal(key, value)?,
            // Opens the list of 0.0, which may have no segment.
            b"numblocks" => drop(self.segments.get_or_insert_default()),
            b"offset" => self.pending_offset = optional_decimal(key, value)?,
            b"numbytes" => {
                let length = required_decimal(key, value)?;
                let offset = self.pending_offset.take();
                let offset = offset.ok_or(Problem::Sparse("a length without an offset before it"))?;
                self.segments.get_or_insert_default().push(Segment { offset, length });
            }
            b"map" => self.segments = Some(map(key, value)?),
            _ => {}
        }
        Ok(())
    }
}

/// The list of version 0.1: `offset,length,offset,length…`. Its length is bounded by that of the header.
fn map(key: &[u8], value: &[u8]) -> Result<Vec<Segment>, Problem> {
    let mut segments = Vec::new();
    if value.is_empty() {
        return Ok(segments);
    }
    let mut numbers = value.split(|&byte| byte == b',');
    while let Some(offset) = numbers.next() {
        let length = numbers.next().ok_or(Problem::Sparse("a map with an odd number of numbers"))?;
        let offset = required_decimal(key, offset)?;
        segments.push(Segment { offset, length: required_decimal(key, length)? });
    }
    Ok(segments)
}

/// Calls `each` with keyword and value of every record, or says which byte is wrong and how.
fn for_each(
    bytes: &[u8],
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), Problem>,
) -> Result<(), (usize, Problem)> {
    let mut position = 0;
    while position < bytes.len() {
        let rest = &bytes[position..];
        let (key, value, length) = record(rest).map_err(|reason| (position, Problem::PaxRecord(reason)))?;
        each(key, value).map_err(|problem| (position, problem))?;
        position += length;
    }
    Ok(())
}

/// Splits the first record off: keyword, value, and the record's whole length.
fn record(bytes: &[u8]) -> Result<(&[u8], &[u8], usize), &'static str> {
    /// Digits of the largest 64-bit number.
    const DIGITS_LIMIT: usize = 20;
    let digits = bytes.iter().take(DIGITS_LIMIT + 1).position(|&byte| byte == b' ');
    let digits = digits.ok_or("expected a length and a space")?;
    let length = decimal(&bytes[..digits]).ok_or("the length is no decimal number")?;
    let length = usize::try_from(length).map_err(|_| "the length exceeds the header")?;
    let record = bytes.get(..length).ok_or("the length exceeds the header")?;
    let content = record.get(digits + 1..).ok_or("the length does not cover the record")?;
    let content = content.strip_suffix(b"\n").ok_or("no newline at the end")?;
    let equals = content.iter().position(|&byte| byte == b'=').ok_or("no equals sign")?;
    if equals == 0 {
        return Err("no keyword");
    }
    Ok((&content[..equals], &content[equals + 1..], length))
}

/// A path or link target. An empty value takes back what an earlier record said.
fn name(key: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, Problem> {
    match value {
        b"" => Ok(None),
        _ if value.contains(&0) => Err(bad_value(key, value, "a name without NUL")),
        _ => Ok(Some(value.to_vec())),
    }
}

/// Digits and nothing else.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn required_decimal(key: &[u8], value: &[u8]) -> Result<u64, Problem> {
    decimal(value).ok_or_else(|| bad_value(key, value, "a decimal number of at most 64 bits"))
}

fn optional_decimal(key: &[u8], value: &[u8]) -> Result<Option<u64>, Problem> {
    if value.is_empty() { Ok(None) } else { required_decimal(key, value).map(Some) }
}

/// `[-]SECONDS[.FRACTION]`; what is finer than a nanosecond is rounded down, towards the past, as file systems do.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let point = text.iter().position(|&byte| byte == b'.');
    let (whole, fraction) = point.map_or((text, &b""[..]), |point| (&text[..point], &text[point + 1..]));
    let whole = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    let finer = fraction.get(9..).is_some_and(|rest| rest.iter().any(|&digit| digit != b'0'));
    if !negative {
        return Some(Time { seconds: whole, nanoseconds });
    }
    let nanoseconds = nanoseconds + u32::from(finer);
    if nanoseconds == 0 {
        return Some(Time { seconds: -whole, nanoseconds: 0 });
    }
    Some(Time { seconds: (-whole).checked_sub(1)?, nanoseconds: 1_000_000_000 - nanoseconds })
}

/// Replaces `%41` by `A`; a percent sign that no two hexadecimal digits follow stays.
fn percent_decoded(text: &[u8]) -> Box<[u8]> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let mut byte = [0];
        match tail.get(..2) {
            Some(digits) if *first == b'%' && hex::decode_to_slice(digits, &mut byte).is_ok() => {
                decoded.push(byte[0]);
                rest = &tail[2..];
            }
            _ => {
                decoded.push(*first);
                rest = tail;
            }
        }
    }
    decoded.into()
}

fn bad_value(key: &[u8], value: &[u8], expected: &'static str) -> Problem {
    /// Enough to recognise the value in a message.
    const KEPT_BYTES: usize = 64;
    Problem::PaxValue { key: key.into(), value: value[..value.len().min(KEPT_BYTES)].into(), expected }
}
