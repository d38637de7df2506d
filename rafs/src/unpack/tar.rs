//! Unpacking to a tar archive: ustar with PAX records for what ustar cannot hold.

use std::io::Write;

use super::error::shown;
use super::{Unpack, UnpackError};
use crate::blob::source::{BlobSource, ChunkReader};
use crate::bootstrap::{Found, Nid, Visitor, walk};
use crate::layout::v6::FileType;
use crate::tree::{Time, Xattrs};

const BLOCK: usize = 512;

/// See [`Unpack::to_tar`].
pub(super) fn unpack<S: BlobSource>(image: Unpack<'_, S>, out: &mut impl Write) -> Result<(), UnpackError> {
    let chunks = ChunkReader::new(image.bootstrap, image.source);
    walk(image.bootstrap, image.limits, &mut Archive { image, chunks, out })?;
    let end = |source| UnpackError::Io { path: shown(b""), action: "write the end of the archive", source };
    out.write_all(&[0; 2 * BLOCK]).and_then(|()| out.flush()).map_err(end)
}

struct Archive<'a, S, W> {
    image: Unpack<'a, S>,
    chunks: ChunkReader<'a, S>,
    out: &'a mut W,
}

impl<S: BlobSource, W: Write> Visitor for Archive<'_, S, W> {
    type Error = UnpackError;

    fn enter(&mut self, found: &Found<'_>) -> Result<(), UnpackError> {
        self.image.watch(0)?;
        if found.inode.kind == FileType::Socket {
            tracing::warn!(path = %shown(found.path), "socket left out: tar has no sockets");
            return Ok(());
        }
        let io =
            |source| UnpackError::Io { path: shown(found.path), action: "write it to the archive", source };
        let (typeflag, target, size) = self.type_and_target(found)?;
        let xattrs = match found.is_link() {
            true => Xattrs::new(),
            false => self.image.xattrs(found.path, found.inode.kind, found.nid)?,
        };
        self.out.write_all(&headers(found, typeflag, &target, size, &xattrs)).map_err(io)?;
        if size == 0 {
            return Ok(());
        }
        for piece in self.image.bootstrap.chunks(found.nid, 0..size)? {
            let piece = piece?;
            let content = self.chunks.read(piece.blob, piece.chunk);
            let content = content
                .map_err(|error| UnpackError::Content { path: shown(found.path), source: Box::new(error) })?;
            self.out.write_all(piece.of(&content)?).map_err(io)?;
            self.image.watch(piece.len.into())?;
        }
        let padding = (BLOCK - (size % BLOCK as u64) as usize) % BLOCK;
        self.out.write_all(&[0; BLOCK][..padding]).map_err(io)
    }

    fn leave(&mut self, _path: &[u8], _nid: Nid) -> Result<(), UnpackError> {
        Ok(())
    }
}

impl<S: BlobSource, W> Archive<'_, S, W> {
    fn type_and_target(&self, found: &Found<'_>) -> Result<(u8, Vec<u8>, u64), UnpackError> {
        if let Some(target) = found.link_to() {
            return Ok((b'1', target.clone(), 0));
        }
        Ok(match found.inode.kind {
            FileType::Regular | FileType::Socket => (b'0', Vec::new(), found.inode.size),
            FileType::Symlink => (b'2', self.image.bootstrap.read_link(found.nid)?.to_vec(), 0),
            FileType::CharDevice => (b'3', Vec::new(), 0),
            FileType::BlockDevice => (b'4', Vec::new(), 0),
            FileType::Directory => (b'5', Vec::new(), 0),
            FileType::Fifo => (b'6', Vec::new(), 0),
        })
    }
}

/// The header of a file, behind a PAX header where one is needed.
fn headers(found: &Found<'_>, typeflag: u8, target: &[u8], size: u64, xattrs: &Xattrs) -> Vec<u8> {
    let mut path = found.path.to_vec();
    if found.inode.kind == FileType::Directory {
        path.extend_from_slice(if path.is_empty() { b"./" } else { b"/" });
    }
    let inode = &found.inode;
    let mut header = TarHeader::new(typeflag);
    let mut pax = Vec::new();
    header.bytes(&mut pax, 0..100, "path", &path);
    header.number(&mut pax, 100..108, "", u64::from(inode.permissions));
    header.number(&mut pax, 108..116, "uid", u64::from(inode.uid));
    header.number(&mut pax, 116..124, "gid", u64::from(inode.gid));
    header.number(&mut pax, 124..136, "size", size);
    header.time(&mut pax, inode.mtime);
    header.bytes(&mut pax, 157..257, "linkpath", target);
    if matches!(inode.kind, FileType::CharDevice | FileType::BlockDevice) {
        // At most 12 and 20 bits: they fit.
        header.number(&mut pax, 329..337, "", u64::from(inode.rdev.major));
        header.number(&mut pax, 337..345, "", u64::from(inode.rdev.minor));
    }
    for (name, value) in xattrs {
        record(&mut pax, &[b"SCHILY.xattr.", &xattr_keyword(name)[..]].concat(), value);
    }
    let mut bytes = Vec::new();
    if !pax.is_empty() {
        let mut extended = TarHeader::new(b'x');
        extended.bytes(&mut Vec::new(), 0..100, "", b"PaxHeader");
        extended.number(&mut Vec::new(), 100..108, "", 0o644);
        extended.number(&mut Vec::new(), 124..136, "", pax.len() as u64);
        extended.number(&mut Vec::new(), 136..148, "", 0);
        bytes.extend_from_slice(&extended.finish());
        pax.resize(pax.len().next_multiple_of(BLOCK), 0);
        bytes.append(&mut pax);
    }
    bytes.extend_from_slice(&header.finish());
    bytes
}

struct TarHeader([u8; BLOCK]);

impl TarHeader {
    fn new(typeflag: u8) -> Self {
        let mut header = [0; BLOCK];
        header[156] = typeflag;
        header[257..265].copy_from_slice(b"ustar\x0000");
        Self(header)
    }

    /// Puts text into a field, and into a PAX record if it does not fit.
    fn bytes(&mut self, pax: &mut Vec<u8>, field: std::ops::Range<usize>, key: &str, value: &[u8]) {
        let fits = value.len().min(field.len());
        self.0[field.start..field.start + fits].copy_from_slice(&value[..fits]);
        if fits < value.len() {
            record(pax, key.as_bytes(), value);
        }
    }

    /// Puts an octal number into a field, and into a PAX record if it does not fit.
    fn number(&mut self, pax: &mut Vec<u8>, field: std::ops::Range<usize>, key: &str, value: u64) {
        let digits = field.len() - 1;
        let fits = value < 1 << (3 * digits);
        let text = format!("{:0digits$o}", if fits { value } else { 0 });
        self.0[field.start..field.start + digits].copy_from_slice(text.as_bytes());
        if !fits {
            record(pax, key.as_bytes(), value.to_string().as_bytes());
        }
    }

    fn time(&mut self, pax: &mut Vec<u8>, time: Time) {
        let whole = u64::try_from(time.seconds).ok().filter(|_| time.nanoseconds == 0);
        let seconds = u64::try_from(time.seconds).unwrap_or(0);
        self.number(pax, 136..148, "mtime", seconds.min((1 << 33) - 1));
        if whole.is_none_or(|seconds| seconds >= 1 << 33) {
            record(pax, b"mtime", decimal(time).as_bytes());
        }
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|&byte| u32::from(byte)).sum();
        self.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

/// An attribute's name as GNU tar puts it into a keyword, which ends at the first equals sign.
fn xattr_keyword(name: &[u8]) -> Vec<u8> {
    let encode = |&byte: &u8| match byte {
        b'%' => b"%25".to_vec(),
        b'=' => b"%3D".to_vec(),
        _ => vec![byte],
    };
    name.iter().flat_map(encode).collect()
}

/// A PAX record: its own length in decimal, then `key=value` and a newline.
fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    pax.extend_from_slice(len.to_string().as_bytes());
    pax.extend_from_slice(&[b" ", key, b"=", value, b"\n"].concat());
}

/// A time as a decimal number. Before 1970, the fraction counts away from 0.
fn decimal(time: Time) -> String {
    let nanoseconds = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let (seconds, fraction) = (nanoseconds.abs() / 1_000_000_000, nanoseconds.abs() % 1_000_000_000);
    if fraction == 0 { format!("{sign}{seconds}") } else { format!("{sign}{seconds}.{fraction:09}") }
}
