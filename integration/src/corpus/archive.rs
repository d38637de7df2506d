//! Layers as tar archives: each entry in the dialect that it asks for.

use std::io::{self, Write};
use std::ops::Range;

use super::{Content, Entry, Kind, Layer};

const BLOCK: usize = 512;

/// Zeros are written in pieces of this many bytes.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// How an entry says what does not fit into a ustar header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Dialect {
    /// It must fit; long paths are split into prefix and name.
    Ustar,
    /// In PAX records.
    Pax,
    /// In GNU's long names and base-256 numbers.
    Gnu,
}

/// How holes are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sparse {
    /// As zeros.
    Dense,
    /// In GNU's old format: the map in the header and in blocks behind it.
    OldGnu,
    /// In PAX format 0.0: a record for each number.
    V0_0,
    /// In PAX format 0.1: the map in one record.
    V0_1,
    /// In PAX format 1.0: the map before the content.
    V1_0,
}

impl Layer {
    /// Writes the layer as a tar stream.
    pub fn write_tar(&self, out: &mut impl Write) -> io::Result<()> {
        for entry in &self.entries {
            write_entry(entry, out)?;
        }
        out.write_all(&[0; 2 * BLOCK])
    }

    /// The layer as a tar stream.
    pub fn to_tar(&self) -> Vec<u8> {
        let mut archive = Vec::new();
        self.write_tar(&mut archive).expect("memory takes everything");
        archive
    }
}

fn write_entry(entry: &Entry, out: &mut impl Write) -> io::Result<()> {
    let mut header = Header::new(entry.dialect);
    let (typeflag, target) = match &entry.kind {
        Kind::File(_) | Kind::Whiteout | Kind::Opaque => (b'0', &b""[..]),
        Kind::HardLink(target) => (b'1', &target[..]),
        Kind::Symlink(target) => (b'2', &target[..]),
        Kind::CharDevice(..) => (b'3', &b""[..]),
        Kind::BlockDevice(..) => (b'4', &b""[..]),
        Kind::Directory => (b'5', &b""[..]),
        Kind::Fifo => (b'6', &b""[..]),
    };
    header.block[156] = typeflag;
    header.path(&spelled(entry));
    header.text(157..257, "linkpath", b'K', target);
    header.octal(100..108, entry.mode.into());
    header.number(108..116, "uid", entry.owner.0.into());
    header.number(116..124, "gid", entry.owner.1.into());
    header.mtime(entry.mtime);
    header.octal(124..136, 0);
    let (major, minor) = match entry.kind {
        Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => (major, minor),
        _ => (0, 0),
    };
    header.octal(329..337, major.into());
    header.octal(337..345, minor.into());
    for (name, value) in &entry.xattrs {
        header.record(&format!("SCHILY.xattr.{name}"), value);
    }
    let Kind::File(content) = &entry.kind else { return header.write(out) };
    let map = header.content(content);
    header.write(out)?;
    out.write_all(&map)?;
    let mut written = map.len() as u64;
    for (offset, data) in &content.segments {
        if content.sparse == Sparse::Dense {
            zeros(offset - written, out)?;
            written = *offset;
        }
        out.write_all(data)?;
        written += data.len() as u64;
    }
    if content.sparse == Sparse::Dense {
        zeros(content.size - written, out)?;
        written = content.size;
    }
    zeros(written.next_multiple_of(BLOCK as u64) - written, out)
}

/// The path that the tar has.
fn spelled(entry: &Entry) -> Vec<u8> {
    let split = entry.spelled.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let (parent, name) = entry.spelled.split_at(split);
    match entry.kind {
        Kind::Whiteout => [parent, b".wh.", name].concat(),
        Kind::Opaque => [&entry.spelled, &b"/.wh..wh..opq"[..]].concat(),
        Kind::Directory if !entry.spelled.ends_with(b"/") => [&entry.spelled, &b"/"[..]].concat(),
        _ => entry.spelled.clone(),
    }
}

fn zeros(mut count: u64, out: &mut impl Write) -> io::Result<()> {
    while count > 0 {
        let step = count.min(ZEROS.len() as u64);
        out.write_all(&ZEROS[..step as usize])?;
        count -= step;
    }
    Ok(())
}

/// A header, and what goes before and behind it.
struct Header {
    dialect: Dialect,
    block: [u8; BLOCK],
    /// GNU's long names.
    long: Vec<u8>,
    records: Vec<u8>,
    /// GNU's blocks with more of a sparse file's map.
    behind: Vec<u8>,
}

impl Header {
    fn new(dialect: Dialect) -> Self {
        let mut block = [0; BLOCK];
        block[257..265].copy_from_slice(match dialect {
            Dialect::Ustar | Dialect::Pax => b"ustar\x0000",
            Dialect::Gnu => b"ustar  \0",
        });
        Self { dialect, block, long: Vec::new(), records: Vec::new(), behind: Vec::new() }
    }

    fn path(&mut self, path: &[u8]) {
        let split = path.iter().take(156).rposition(|&byte| byte == b'/').filter(|&split| split > 0);
        match split {
            Some(split) if self.dialect == Dialect::Ustar && path.len() > 100 => {
                let (prefix, name) = (&path[..split], &path[split + 1..]);
                assert!(!name.is_empty() && name.len() <= 100, "too long for ustar: {}", path.escape_ascii());
                self.block[345..345 + prefix.len()].copy_from_slice(prefix);
                self.block[..name.len()].copy_from_slice(name);
            }
            _ => self.text(0..100, "path", b'L', path),
        }
    }

    fn text(&mut self, field: Range<usize>, key: &str, long_typeflag: u8, text: &[u8]) {
        let fits = text.len().min(field.len());
        self.block[field][..fits].copy_from_slice(&text[..fits]);
        match self.dialect {
            _ if fits == text.len() => {}
            Dialect::Ustar => panic!("too long for ustar: {}", text.escape_ascii()),
            Dialect::Pax => self.record(key, text),
            Dialect::Gnu => {
                let long = extension(b"././@LongLink", long_typeflag, &[text, b"\0"].concat());
                self.long.extend_from_slice(&long);
            }
        }
    }

    fn octal(&mut self, field: Range<usize>, value: u64) {
        let digits = field.len() - 1;
        let text = format!("{value:0digits$o}\0");
        assert_eq!(text.len(), field.len(), "{value} does not fit");
        self.block[field].copy_from_slice(text.as_bytes());
    }

    fn number(&mut self, field: Range<usize>, key: &str, value: i64) {
        let most = 1 << (3 * (field.len() - 1));
        match self.dialect {
            _ if (0..most).contains(&value) => self.octal(field, value as u64),
            Dialect::Ustar => panic!("{key} {value} is too large for ustar"),
            Dialect::Pax => self.record(key, value.to_string().as_bytes()),
            Dialect::Gnu => {
                let bytes = i128::from(value).to_be_bytes();
                self.block[field.clone()].copy_from_slice(&bytes[bytes.len() - field.len()..]);
                self.block[field.start] |= 0x80;
            }
        }
    }

    fn mtime(&mut self, (seconds, nanoseconds): (i64, u32)) {
        if nanoseconds == 0 {
            return self.number(136..148, "mtime", seconds);
        }
        assert_eq!(self.dialect, Dialect::Pax, "only PAX has fractions of seconds");
        // Before 1970 the fraction counts away from 0.
        let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        let (sign, total) = if total < 0 { ("-", -total) } else { ("", total) };
        let text = format!("{sign}{}.{:09}", total / 1_000_000_000, total % 1_000_000_000);
        self.record("mtime", text.as_bytes());
    }

    /// Says how large the content is and where it belongs. Gives the map that goes before it.
    fn content(&mut self, content: &Content) -> Vec<u8> {
        let map: Vec<_> =
            content.segments.iter().map(|(offset, data)| (*offset, data.len() as u64)).collect();
        let data: u64 = map.iter().map(|(_, length)| length).sum();
        let real_size = content.size.to_string();
        let mut before = Vec::new();
        match content.sparse {
            Sparse::Dense => return self.size(content.size, before),
            Sparse::OldGnu => self.old_gnu_map(&map, content.size),
            Sparse::V0_0 => {
                self.record("GNU.sparse.size", real_size.as_bytes());
                self.record("GNU.sparse.numblocks", map.len().to_string().as_bytes());
                for (offset, length) in map {
                    self.record("GNU.sparse.offset", offset.to_string().as_bytes());
                    self.record("GNU.sparse.numbytes", length.to_string().as_bytes());
                }
            }
            Sparse::V0_1 => {
                let map = map.iter().flat_map(|(offset, length)| [offset.to_string(), length.to_string()]);
                let map = map.collect::<Vec<_>>().join(",");
                self.record("GNU.sparse.map", map.as_bytes());
                self.record("GNU.sparse.size", real_size.as_bytes());
            }
            Sparse::V1_0 => {
                let numbers = map.iter().flat_map(|(offset, length)| [*offset, *length]);
                for number in std::iter::once(map.len() as u64).chain(numbers) {
                    before.extend_from_slice(format!("{number}\n").as_bytes());
                }
                before.resize(before.len().next_multiple_of(BLOCK), 0);
                self.record("GNU.sparse.major", b"1");
                self.record("GNU.sparse.minor", b"0");
                self.record("GNU.sparse.realsize", real_size.as_bytes());
            }
        }
        self.size(data + before.len() as u64, before)
    }

    fn size(&mut self, stored: u64, before: Vec<u8>) -> Vec<u8> {
        self.number(124..136, "size", stored as i64);
        before
    }

    fn old_gnu_map(&mut self, map: &[(u64, u64)], real_size: u64) {
        assert_eq!(self.dialect, Dialect::Gnu, "GNU's old format is GNU's dialect");
        self.block[156] = b'S';
        self.octal(483..495, real_size);
        let (first, rest) = map.split_at(map.len().min(4));
        self.block[386..386 + first.len() * 24].copy_from_slice(&slots(first));
        self.block[482] = u8::from(!rest.is_empty());
        let mut blocks = rest.chunks(21).peekable();
        while let Some(segments) = blocks.next() {
            let mut block = slots(segments);
            block.resize(BLOCK, 0);
            block[504] = u8::from(blocks.peek().is_some());
            self.behind.extend_from_slice(&block);
        }
    }

    fn record(&mut self, key: &str, value: &[u8]) {
        assert_eq!(self.dialect, Dialect::Pax, "only PAX has records such as {key}");
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.records.extend_from_slice(&[format!("{length} {key}=").as_bytes(), value, b"\n"].concat());
    }

    fn write(self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.long)?;
        if !self.records.is_empty() {
            out.write_all(&extension(b"PaxHeaders", b'x', &self.records))?;
        }
        out.write_all(&with_checksum(self.block))?;
        out.write_all(&self.behind)
    }
}

/// Segments of a sparse file as GNU's old format has them.
fn slots(segments: &[(u64, u64)]) -> Vec<u8> {
    segments
        .iter()
        .flat_map(|(offset, length)| format!("{offset:011o}\0{length:011o}\0").into_bytes())
        .collect()
}

/// A header with content that extends the next one.
fn extension(name: &[u8], typeflag: u8, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new(Dialect::Gnu);
    header.text(0..100, "path", b'L', name);
    header.block[156] = typeflag;
    header.octal(100..108, 0o644);
    header.octal(108..116, 0);
    header.octal(116..124, 0);
    header.octal(124..136, content.len() as u64);
    header.octal(136..148, 0);
    let mut bytes = with_checksum(header.block).to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn with_checksum(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
