//! What is built and merged. All of it is made of the large root file system, so the same packages give the same bytes.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tar::{Builder, EntryType, Header};

/// Files of the source tree.
const SOURCE_FILES: u32 = 100_000;
/// Sizes of its files in bytes: evenly spread on a logarithmic scale, so half of them have less than 2.9 KB and the mean
/// is 6.7 KB, as in large source trees.
const SOURCE_SIZES: (f64, f64) = (256.0, 32_768.0);
/// Files in a directory of the source tree, and directories in a directory.
const SOURCE_FAN_OUT: u32 = 25;
/// As much text is taken from the root file system, in bytes: enough that its cuts hardly overlap more than ten times.
const TEXT_LIMIT: usize = 128 << 20;
/// A file is text if its first bytes, this many, are.
const TEXT_PROBE: usize = 1024;

/// Pseudo-random numbers that are the same everywhere (xorshift64*).
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// One below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// One from 0 to 1.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The text files of a tar, one after the other.
pub(super) fn texts(tar: &Path) -> Result<Vec<u8>> {
    let file = File::open(tar).with_context(|| format!("opening {}", tar.display()))?;
    let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 20, file));
    let mut text = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.header().entry_type() != EntryType::Regular || text.len() >= TEXT_LIMIT {
            continue;
        }
        let start = text.len();
        entry.by_ref().take(TEXT_PROBE as u64).read_to_end(&mut text)?;
        if text[start..].iter().all(|&byte| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..0x7f)) {
            entry.read_to_end(&mut text)?;
        } else {
            text.truncate(start);
        }
    }
    ensure!(text.len() >= TEXT_LIMIT / 4, "{} has only {} bytes of text", tar.display(), text.len());
    Ok(text)
}

/// Writes a tar of 100,000 small files, all different: pieces cut from `text`, in 4,000 directories.
pub(super) fn source_tree(text: &[u8], out: &Path) -> Result<()> {
    let file = File::create(out).with_context(|| format!("creating {}", out.display()))?;
    let mut tar = Builder::new(BufWriter::with_capacity(1 << 20, file));
    let mut numbers = Numbers::new(1);
    let (least, most) = SOURCE_SIZES;
    for index in 0..SOURCE_FILES {
        let directory = index / SOURCE_FAN_OUT;
        let path = format!("src/{:03}/{:02}", directory / SOURCE_FAN_OUT, directory % SOURCE_FAN_OUT);
        if index % (SOURCE_FAN_OUT * SOURCE_FAN_OUT) == 0 {
            add_directory(&mut tar, &format!("src/{:03}/", directory / SOURCE_FAN_OUT))?;
        }
        if index % SOURCE_FAN_OUT == 0 {
            add_directory(&mut tar, &format!("{path}/"))?;
        }
        let size = (least * (most / least).powf(numbers.fraction())) as usize;
        let start = numbers.below((text.len() - size) as u64) as usize;
        add_file(&mut tar, &format!("{path}/file-{index}.c"), &text[start..start + size])?;
    }
    tar.into_inner()?.flush().with_context(|| format!("writing {}", out.display()))
}

/// Writes the tar of one of a stack of layers with `entries` entries: most are its own, in directories of its own and in
/// ones that all layers share; some replace files of the layers below, and some remove them.
pub(super) fn layer(number: u32, entries: u32, out: &Path) -> Result<()> {
    let file = File::create(out).with_context(|| format!("creating {}", out.display()))?;
    let mut tar = Builder::new(BufWriter::new(file));
    let mut numbers = Numbers::new(u64::from(number) + 1);
    let mut added = 0;
    add_directory(&mut tar, "usr/")?;
    while added + 1 < entries {
        // A package: a directory of 20 files, every tenth of a name that the layers have in common.
        let package = added / 21;
        let directory = match package % 10 {
            0 => format!("usr/share/{package}"),
            _ => format!("usr/lib/layer-{number}/{package}"),
        };
        add_directory(&mut tar, &format!("{directory}/"))?;
        added += 1;
        for index in 0..20.min(entries - 1 - added) {
            // What the first layer would remove, nydus-image leaves as files of these names.
            let removes = number > 0 && package % 10 == 0 && index == 19;
            let (name, content) = if removes {
                let below = numbers.below(u64::from(number));
                (format!("{directory}/.wh.file-{below}-{}", numbers.below(19)), String::new())
            } else {
                let shared = index < 5;
                let owner = if shared { 0 } else { number };
                (format!("{directory}/file-{owner}-{index}"), format!("{number} {package} {index}\n"))
            };
            add_file(&mut tar, &name, content.as_bytes())?;
            added += 1;
        }
    }
    tar.into_inner()?.flush().with_context(|| format!("writing {}", out.display()))
}

/// Writes a tar of `total` bytes of content to `out`, in files of at most `file_size` bytes, all different.
pub(super) fn stream(text: &[u8], total: u64, file_size: u64, out: &mut dyn Write) -> Result<()> {
    let mut tar = Builder::new(BufWriter::with_capacity(1 << 20, out));
    let mut numbers = Numbers::new(total);
    let (mut left, mut index) = (total, 0_u64);
    while left > 0 {
        let size = file_size.min(left);
        let start = numbers.below(text.len() as u64) as usize;
        if index % 100 == 0 {
            add_directory(&mut tar, &format!("{}/", index / 100))?;
        }
        let content = Content { text, at: start, stamp: index << 24, left: size };
        append(&mut tar, &format!("{}/{index}", index / 100), size, content)?;
        (left, index) = (left - size, index + 1);
    }
    tar.into_inner()?.flush().context("writing the stream")
}

/// Text from a place on, over and over, with a number in every 64 KiB that makes it different from all other.
struct Content<'a> {
    text: &'a [u8],
    at: usize,
    stamp: u64,
    left: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        const STAMPED: usize = 64 << 10;
        let length = buffer.len().min(STAMPED).min(self.text.len() - self.at).min(self.left as usize);
        buffer[..length].copy_from_slice(&self.text[self.at..self.at + length]);
        let stamp = self.stamp.to_le_bytes();
        let stamped = length.min(stamp.len());
        buffer[..stamped].copy_from_slice(&stamp[..stamped]);
        self.at = (self.at + length) % self.text.len();
        self.stamp += 1;
        self.left -= length as u64;
        Ok(length)
    }
}

fn add_directory(tar: &mut Builder<impl Write>, path: &str) -> Result<()> {
    let mut header = header(EntryType::Directory, 0o755, 0);
    tar.append_data(&mut header, path, std::io::empty()).with_context(|| format!("adding {path}"))
}

fn add_file(tar: &mut Builder<impl Write>, path: &str, content: &[u8]) -> Result<()> {
    append(tar, path, content.len() as u64, content)
}

fn append(tar: &mut Builder<impl Write>, path: &str, size: u64, content: impl Read) -> Result<()> {
    let mut header = header(EntryType::Regular, 0o644, size);
    tar.append_data(&mut header, path, content).with_context(|| format!("adding {path}"))
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_735_689_600);
    header
}
