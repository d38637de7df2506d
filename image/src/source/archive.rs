//! A tar whose entries are read where they lie: scanned once for names and offsets, never unpacked.
//!
//! Archives of images have but directories, files and links between files. A link leads to the file that it names.

mod scan;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use registry::layout::Members;

use super::error::SourceError;
use super::files::Part;

/// What a gzip stream begins with.
pub(super) const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// What a zstd stream begins with.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Links that lead to links are followed so far.
const LINKS_LIMIT: usize = 8;

/// A tar and where its files are in it.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    entries: HashMap<String, ArchiveEntry>,
}

/// An entry of the tar.
#[derive(Clone, Debug, Eq, PartialEq)]
enum ArchiveEntry {
    /// Offset and size in bytes of its content.
    File { offset: u64, size: u64 },
    /// The name that it leads to.
    Link(String),
}

impl Archive {
    /// Scans the tar at `path`. One that is compressed with gzip is decompressed to an unnamed file in `spool` first, for it
    /// can be read only from its beginning.
    pub(super) fn open(path: &Path, spool: &Path) -> Result<Self, SourceError> {
        let place = path.display().to_string();
        let io = || SourceError::io(place.clone());
        if !path.metadata().map_err(io())?.is_file() {
            return Err(SourceError::document(place, "expected a file that is a tar"));
        }
        let file = File::open(path).map_err(io())?;
        let mut magic = [0; 4];
        let read = file.read_at(&mut magic, 0).map_err(io())?;
        let file = if magic.starts_with(&GZIP_MAGIC) {
            decompress(file, spool).map_err(io())?
        } else if read == magic.len() && magic == ZSTD_MAGIC {
            return Err(SourceError::document(
                place,
                "it is compressed with zstd: expected a tar, plain or gzip",
            ));
        } else {
            file
        };
        let entries = scan::entries(path, &file)?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file), entries })
    }

    /// The tar.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All files, and where they lie. Links stand for what they lead to.
    pub(super) fn members(&self) -> Members {
        let parts = self.entries.keys().filter_map(|name| {
            let part = self.part(name).ok()?;
            Some((name.clone(), (part.offset, part.size)))
        });
        Members::new(self.path.clone(), Arc::clone(&self.file), parts.collect())
    }

    /// Whether there is a file of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The file `name`.
    pub(super) fn part(&self, name: &str) -> Result<Part, SourceError> {
        let place = format!("{name} in {}", self.path.display());
        let mut current = name;
        for _ in 0..=LINKS_LIMIT {
            match self.entries.get(current) {
                Some(&ArchiveEntry::File { offset, size }) => {
                    return Ok(Part { place, file: Arc::clone(&self.file), offset, size });
                }
                Some(ArchiveEntry::Link(target)) => current = target,
                None => return Err(SourceError::Missing { place }),
            }
        }
        Err(SourceError::document(place, format!("it leads through more than {LINKS_LIMIT} links")))
    }
}

fn decompress(packed: File, spool: &Path) -> io::Result<File> {
    let mut plain = tempfile::tempfile_in(spool)?;
    let mut input = MultiGzDecoder::new(io::BufReader::with_capacity(1 << 20, packed));
    io::copy(&mut input.by_ref(), &mut plain)?;
    plain.rewind()?;
    Ok(plain)
}

#[cfg(test)]
mod tests;
