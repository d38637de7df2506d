//! The names in a tar, and where their content is.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tar::{EntryType, Header, PaxExtensions};

use super::Entry;
use crate::source::error::SourceError;

const BLOCK_BYTES: u64 = 512;

/// Long names and PAX records are longer in no archive of an image.
const EXTENSION_LIMIT_BYTES: u64 = 1 << 20;

/// Images have some hundred layers; each is up to three entries.
const ENTRIES_LIMIT: usize = 100_000;

/// What entries of their own say about the next one.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

/// Scans the tar `file`, which is at `path`. Of entries with the same name the last counts, as when unpacking.
pub(super) fn entries(path: &Path, file: &File) -> Result<HashMap<String, Entry>, SourceError> {
    let end = file.metadata().map_err(SourceError::io(path.display().to_string()))?.len();
    let mut scan =
        Scan { path, file, end, offset: 0, extension: Extension::default(), entries: HashMap::new() };
    while scan.step()? {}
    Ok(scan.entries)
}

struct Scan<'a> {
    path: &'a Path,
    file: &'a File,
    /// Size of the file in bytes.
    end: u64,
    /// Where the next header is.
    offset: u64,
    extension: Extension,
    entries: HashMap<String, Entry>,
}

impl Scan<'_> {
    fn wrong(&self, reason: impl Into<String>) -> SourceError {
        SourceError::Archive { path: self.path.to_owned(), offset: self.offset, reason: reason.into() }
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        self.file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.wrong("the tar ends within it"),
            _ => self.wrong(error.to_string()),
        })
    }

    /// Reads one entry; false at the end.
    fn step(&mut self) -> Result<bool, SourceError> {
        // Two blocks of zeros are the end; a file that just ends is taken for complete, as by GNU tar.
        if self.offset == self.end && !self.entries.is_empty() {
            return Ok(false);
        }
        let mut block = [0; BLOCK_BYTES as usize];
        self.read(self.offset, &mut block)?;
        if block.iter().all(|&byte| byte == 0) {
            return Ok(false);
        }
        let header = Header::from_byte_slice(&block);
        self.check(header, &block)?;
        let kind = header.entry_type();
        let size = match self.extension.size {
            Some(size) if !is_extension(kind) => size,
            _ => header.entry_size().map_err(|error| self.wrong(error.to_string()))?,
        };
        let content = self.offset + BLOCK_BYTES;
        let next = size
            .checked_next_multiple_of(BLOCK_BYTES)
            .and_then(|padded| content.checked_add(padded))
            .filter(|_| content.saturating_add(size) <= self.end)
            .ok_or_else(|| {
                self.wrong(format!("it has {size} bytes, of which {} are there", self.end - content))
            })?;
        if is_extension(kind) {
            self.extend(kind, content, size)?;
        } else {
            self.add(header, kind, content, size)?;
        }
        // The padding behind the last file is missing in archives of some tools.
        self.offset = next.min(self.end);
        Ok(true)
    }

    /// Checks that this is a header at all.
    fn check(&self, header: &Header, block: &[u8]) -> Result<(), SourceError> {
        const CHECKSUM: std::ops::Range<usize> = 148..156;
        let sum: u32 =
            (0..).zip(block).map(|(i, &b)| if CHECKSUM.contains(&i) { 32 } else { u32::from(b) }).sum();
        match header.cksum() {
            Ok(stated) if stated == sum => Ok(()),
            _ => Err(self.wrong("there is no tar header: its checksum is wrong")),
        }
    }

    /// Takes what an entry says about the next one.
    fn extend(&mut self, kind: EntryType, content: u64, size: u64) -> Result<(), SourceError> {
        if size > EXTENSION_LIMIT_BYTES {
            return Err(self.wrong(format!(
                "it describes the next one in {size} bytes: at most {EXTENSION_LIMIT_BYTES} are read"
            )));
        }
        let mut data = vec![0; size as usize];
        self.read(content, &mut data)?;
        let text = |data: &[u8]| data.split(|&byte| byte == 0).next().unwrap_or_default().to_vec();
        match kind {
            EntryType::GNULongName => self.extension.name = Some(text(&data)),
            EntryType::GNULongLink => self.extension.link = Some(text(&data)),
            EntryType::XHeader => {
                for record in PaxExtensions::new(&data) {
                    let record = record.map_err(|error| self.wrong(format!("PAX records: {error}")))?;
                    match record.key_bytes() {
                        b"path" => self.extension.name = Some(record.value_bytes().to_vec()),
                        b"linkpath" => self.extension.link = Some(record.value_bytes().to_vec()),
                        b"size" => {
                            let size = record.value().ok().and_then(|value| value.parse().ok());
                            let wrong = || self.wrong("PAX records: the size is no number");
                            self.extension.size = Some(size.ok_or_else(wrong)?);
                        }
                        key if key.starts_with(b"GNU.sparse.") => {
                            return Err(self.wrong("a sparse file: expected plain ones"));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn add(&mut self, header: &Header, kind: EntryType, offset: u64, size: u64) -> Result<(), SourceError> {
        let extension = std::mem::take(&mut self.extension);
        let raw = extension.name.unwrap_or_else(|| header.path_bytes().into_owned());
        let entry = match kind {
            EntryType::Regular | EntryType::Continuous => Entry::File { offset, size },
            EntryType::Symlink | EntryType::Link => {
                let target =
                    extension.link.or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
                let target = target.unwrap_or_default();
                // A symbolic link starts from its own folder, a hard link from the root.
                let folder = raw.iter().rposition(|&byte| byte == b'/').map_or(&[][..], |end| &raw[..end]);
                let base = if kind == EntryType::Symlink { folder } else { &[] };
                match normal(base, &target) {
                    Some(target) => Entry::Link(target),
                    // It leads out of the archive, where nothing is looked for.
                    None => return Ok(()),
                }
            }
            EntryType::GNUSparse => return Err(self.wrong("a sparse file: expected plain ones")),
            _ => return Ok(()),
        };
        // What is not in the archive by a usable name cannot be named by a document either.
        if let Some(name) = normal(&[], &raw) {
            if self.entries.len() >= ENTRIES_LIMIT {
                return Err(
                    self.wrong(format!("the tar has more than {ENTRIES_LIMIT} files: it is no image"))
                );
            }
            self.entries.insert(name, entry);
        }
        Ok(())
    }
}

fn is_extension(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
    )
}

/// The name `path`, as seen from `base`, without `.` and `..`; `None` where it is outside of the archive or no text.
fn normal(base: &[u8], path: &[u8]) -> Option<String> {
    if path.starts_with(b"/") {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    let base = std::str::from_utf8(base).ok()?;
    for part in base.split('/').chain(std::str::from_utf8(path).ok()?.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}
