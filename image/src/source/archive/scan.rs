//! The names in a tar, and where their content is.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rafs::source::tar::heads::{BLOCK_BYTES, EntryHead, Extension, Head, Heads};

use super::ArchiveEntry;
use crate::source::error::SourceError;

/// Types of entries.
const HARD_LINK: u8 = b'1';
const SYMBOLIC_LINK: u8 = b'2';

/// Images have some hundred layers; each is up to three entries.
const ENTRIES_LIMIT: usize = 100_000;

/// Scans the tar `file`, which is at `path`. Of entries with the same name the last counts, as when unpacking.
pub(super) fn entries(path: &Path, file: &File) -> Result<HashMap<String, ArchiveEntry>, SourceError> {
    let end = file.metadata().map_err(SourceError::io(path.display().to_string()))?.len();
    let mut scan = Scan { path, file, end, offset: 0, heads: Heads::default(), entries: HashMap::new() };
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
    heads: Heads,
    entries: HashMap<String, ArchiveEntry>,
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
        let mut block = [0; BLOCK_BYTES];
        self.read(self.offset, &mut block)?;
        let head = self.heads.next(block).map_err(|problem| self.wrong(problem.to_string()))?;
        let content = self.offset + BLOCK_BYTES as u64;
        match head {
            Head::End => return Ok(false),
            Head::Extension(extension) => {
                let next = self.end_of(content, extension.size as u64)?;
                self.extend(extension, content)?;
                self.offset = next;
            }
            Head::Entry(entry) => {
                // Whatever the size field of what is no file says, as tar and the container runtimes read it.
                let size = if matches!(entry.typeflag, b'1'..=b'6') { 0 } else { entry.size };
                let next = self.end_of(content, size)?;
                self.add(entry, content)?;
                self.offset = next;
            }
        }
        Ok(true)
    }

    /// Where the next header is behind `size` bytes of content at `content`, which have to be there.
    fn end_of(&self, content: u64, size: u64) -> Result<u64, SourceError> {
        let next = size
            .checked_next_multiple_of(BLOCK_BYTES as u64)
            .and_then(|padded| content.checked_add(padded))
            .filter(|_| content.saturating_add(size) <= self.end)
            .ok_or_else(|| {
                self.wrong(format!("it has {size} bytes, of which {} are there", self.end - content))
            })?;
        // The padding behind the last file is missing in archives of some tools.
        Ok(next.min(self.end))
    }

    /// Takes what an entry says about others.
    fn extend(&mut self, extension: Extension, content: u64) -> Result<(), SourceError> {
        let mut data = vec![0; extension.size];
        self.read(content, &mut data)?;
        let extended = self.heads.extend(extension, &data);
        extended.map_err(|problem| self.wrong(problem.to_string()))
    }

    fn add(&mut self, head: EntryHead, offset: u64) -> Result<(), SourceError> {
        if head.is_sparse {
            return Err(self.wrong("a sparse file: expected plain ones"));
        }
        let entry = match head.typeflag {
            _ if head.is_file() => ArchiveEntry::File { offset, size: head.size },
            kind @ (HARD_LINK | SYMBOLIC_LINK) => {
                // A symbolic link starts from its own folder, a hard link from the root.
                let folder = head.path.iter().rposition(|&byte| byte == b'/');
                let folder = folder.map_or(&[][..], |end| &head.path[..end]);
                let base = if kind == SYMBOLIC_LINK { folder } else { &[] };
                match normal(base, &head.link) {
                    Some(target) => ArchiveEntry::Link(target),
                    // It leads out of the archive, where nothing is looked for.
                    None => return Ok(()),
                }
            }
            _ => return Ok(()),
        };
        // What is not in the archive by a usable name cannot be named by a document either.
        if let Some(name) = normal(&[], &head.path) {
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
