//! File trees as tar archives, in several dialects.

use std::collections::HashMap;

use rafs::tree::{Metadata, Time};

use super::arbitrary::{File, FileKind, FileTree, SegmentedContent};

const BLOCK: usize = 512;

/// How an archive says what a ustar header cannot.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dialect {
    /// PAX records; sparse files in this version of GNU's format.
    Pax(Sparse),
    /// GNU long names, base-256 numbers and GNU's sparse files; what GNU's dialect has no way to say (extended
    /// attributes, fractions of seconds) in PAX records.
    Gnu,
}

/// How sparse files are written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sparse {
    /// With their holes.
    Dense,
    V0_0,
    V0_1,
    V1_0,
}

/// Writes a tree as an archive. With `reversed`, what a directory has comes before it, and hard links may come before
/// their targets.
pub(crate) fn to_tar(tree: &FileTree, dialect: Dialect, reversed: bool) -> Vec<u8> {
    let mut first_names = HashMap::new();
    for (path, &number) in &tree.names {
        first_names.entry(number).or_insert(path);
    }
    let mut paths = tree.names.keys().collect::<Vec<_>>();
    if reversed {
        paths.reverse();
    }
    let mut archive = Vec::new();
    for path in paths {
        let number = tree.names[path];
        let link = Some(first_names[&number]).filter(|&first| first != path);
        write_entry(&mut archive, path, &tree.files[number], link.map(Vec::as_slice), dialect);
    }
    archive.resize(archive.len() + 2 * BLOCK, 0);
    archive
}

fn write_entry(archive: &mut Vec<u8>, path: &[u8], file: &File, link: Option<&[u8]>, dialect: Dialect) {
    let mut name = [b"./", path].concat();
    if file.kind == FileKind::Directory && !name.ends_with(b"/") {
        name.push(b'/');
    }
    let mut header = Header::new(dialect);
    let link = link.map(|link| [b"./", link].concat());
    let (typeflag, target, content) = match (&link, &file.kind) {
        (Some(link), _) => (b'1', link.as_slice(), None),
        (None, FileKind::Directory) => (b'5', &b""[..], None),
        (None, FileKind::Regular(content)) => (b'0', &b""[..], Some(content)),
        (None, FileKind::Symlink(target)) => (b'2', target.as_slice(), None),
        (None, FileKind::CharDevice(_)) => (b'3', &b""[..], None),
        (None, FileKind::BlockDevice(_)) => (b'4', &b""[..], None),
        (None, FileKind::Fifo) => (b'6', &b""[..], None),
    };
    header.block[156] = typeflag;
    if let FileKind::CharDevice(device) | FileKind::BlockDevice(device) = file.kind {
        header.octal(329..337, device.major.into());
        header.octal(337..345, device.minor.into());
    }
    header.metadata(&file.metadata);
    header.name(&name);
    header.text(157..257, "linkpath", b'K', target);
    let stored = content.map_or_else(Vec::new, |content| header.content(content));
    header.octal(124..136, stored.len() as u64);
    header.finish(archive);
    archive.extend_from_slice(&padded(&stored));
}

/// A header and what goes before it.
struct Header {
    dialect: Dialect,
    block: [u8; BLOCK],
    /// Blocks of GNU's long names.
    long: Vec<u8>,
    records: Vec<u8>,
}

impl Header {
    fn new(dialect: Dialect) -> Self {
        let mut block = [0; BLOCK];
        block[257..265].copy_from_slice(match dialect {
            Dialect::Pax(_) => b"ustar\x0000",
            Dialect::Gnu => b"ustar  \0",
        });
        Self { dialect, block, long: Vec::new(), records: Vec::new() }
    }

    fn metadata(&mut self, metadata: &Metadata) {
        self.octal(100..108, metadata.permissions.into());
        self.number(108..116, "uid", metadata.uid.into());
        self.number(116..124, "gid", metadata.gid.into());
        self.time(metadata.mtime);
        for (name, value) in &metadata.xattrs {
            self.record(&format!("SCHILY.xattr.{}", String::from_utf8_lossy(name)), value);
        }
    }

    fn time(&mut self, time: Time) {
        if time.nanoseconds == 0 {
            return self.number(136..148, "mtime", time.seconds);
        }
        // Before 1970 the fraction counts away from 0.
        let total = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
        let (sign, total) = if total < 0 { ("-", -total) } else { ("", total) };
        let text = format!("{sign}{}.{:09}", total / 1_000_000_000, total % 1_000_000_000);
        self.record("mtime", text.as_bytes());
    }

    /// The prefix field is used where it serves.
    fn name(&mut self, name: &[u8]) {
        let split = name.iter().take(156).rposition(|&byte| byte == b'/');
        match (self.dialect, split) {
            (Dialect::Pax(_), Some(split))
                if name.len() > 100 && (1..=100).contains(&(name.len() - split - 1)) =>
            {
                self.block[345..345 + split].copy_from_slice(&name[..split]);
                self.block[..name.len() - split - 1].copy_from_slice(&name[split + 1..]);
            }
            _ => self.text(0..100, "path", b'L', name),
        }
    }

    fn text(&mut self, field: std::ops::Range<usize>, key: &str, long_typeflag: u8, text: &[u8]) {
        let fits = text.len().min(field.len());
        self.block[field][..fits].copy_from_slice(&text[..fits]);
        if fits == text.len() {
            return;
        }
        match self.dialect {
            Dialect::Pax(_) => self.record(key, text),
            Dialect::Gnu => {
                let long = extension(b"././@LongLink", long_typeflag, &[text, b"\0"].concat());
                self.long.extend_from_slice(&long);
            }
        }
    }

    fn octal(&mut self, field: std::ops::Range<usize>, value: u64) {
        let digits = field.len() - 1;
        let text = format!("{value:0digits$o}\0");
        assert_eq!(text.len(), field.len(), "the number fits");
        self.block[field].copy_from_slice(text.as_bytes());
    }

    fn number(&mut self, field: std::ops::Range<usize>, key: &str, value: i64) {
        let most = 1 << (3 * (field.len() - 1));
        match self.dialect {
            _ if (0..most).contains(&value) => self.octal(field, value as u64),
            Dialect::Pax(_) => self.record(key, value.to_string().as_bytes()),
            Dialect::Gnu => {
                let length = field.len();
                let bytes = i128::from(value).to_be_bytes();
                self.block[field.clone()].copy_from_slice(&bytes[bytes.len() - length..]);
                self.block[field.start] |= 0x80;
            }
        }
    }

    /// What is stored of the content. Says in header and records where it belongs.
    fn content(&mut self, content: &SegmentedContent) -> Vec<u8> {
        let map =
            content.segments.iter().map(|(offset, data)| (*offset, data.len() as u64)).collect::<Vec<_>>();
        let data = content.segments.iter().flat_map(|(_, data)| data.iter().copied()).collect::<Vec<_>>();
        let size = content.size.to_string();
        match self.dialect {
            Dialect::Pax(Sparse::Dense) => return content.bytes(),
            Dialect::Gnu if map.len() > 4 => return content.bytes(),
            Dialect::Gnu => {
                self.block[156] = b'S';
                for (index, (offset, length)) in map.into_iter().enumerate() {
                    self.octal(386 + index * 24..398 + index * 24, offset);
                    self.octal(398 + index * 24..410 + index * 24, length);
                }
                self.octal(483..495, content.size);
            }
            Dialect::Pax(Sparse::V0_0) => {
                self.record("GNU.sparse.size", size.as_bytes());
                self.record("GNU.sparse.numblocks", map.len().to_string().as_bytes());
                for (offset, length) in map {
                    self.record("GNU.sparse.offset", offset.to_string().as_bytes());
                    self.record("GNU.sparse.numbytes", length.to_string().as_bytes());
                }
            }
            Dialect::Pax(Sparse::V0_1) => {
                let map = map.iter().flat_map(|(offset, length)| [offset.to_string(), length.to_string()]);
                self.record("GNU.sparse.map", map.collect::<Vec<_>>().join(",").as_bytes());
                self.record("GNU.sparse.size", size.as_bytes());
            }
            Dialect::Pax(Sparse::V1_0) => {
                self.record("GNU.sparse.major", b"1");
                self.record("GNU.sparse.minor", b"0");
                self.record("GNU.sparse.realsize", size.as_bytes());
                let lines =
                    map.iter().map(|(offset, length)| format!("{offset}\n{length}\n")).collect::<String>();
                let lines = format!("{}\n{lines}", map.len());
                return [padded(lines.as_bytes()), data].concat();
            }
        }
        data
    }

    fn record(&mut self, key: &str, value: &[u8]) {
        let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut length = rest.len();
        while length != rest.len() + length.to_string().len() {
            length = rest.len() + length.to_string().len();
        }
        self.records.extend_from_slice(length.to_string().as_bytes());
        self.records.extend_from_slice(&rest);
    }

    fn finish(mut self, archive: &mut Vec<u8>) {
        if !self.records.is_empty() {
            archive.extend_from_slice(&extension(b"PaxHeaders/file", b'x', &self.records));
        }
        archive.extend_from_slice(&self.long);
        sum(&mut self.block);
        archive.extend_from_slice(&self.block);
    }
}

fn extension(name: &[u8], typeflag: u8, content: &[u8]) -> Vec<u8> {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    block[156] = typeflag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    sum(&mut block);
    [block.to_vec(), padded(content)].concat()
}

fn sum(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum = block.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}
