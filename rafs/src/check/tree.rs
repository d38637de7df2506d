//! Checking a bootstrap's structure.

use super::Report;
use crate::blob::source::name as blob_name;
use crate::blob::{BlobIndex, Chunk};
use crate::bootstrap::{Bootstrap, FileNames, Flaw, Found, Nid, ReadError, Version, Visitor, walk};
use crate::layout::BLOCK_SIZE;
use crate::layout::v6::FileType;
use crate::limits::Limits;

/// Checks everything that a bootstrap says: inodes, names and their order, link counts, chunk addresses and chunks.
pub fn structure(bootstrap: &Bootstrap) -> Report {
    structure_within(bootstrap, Limits::DEFAULT)
}

/// [`structure`], with a report and paths that are no longer than `limits` say.
pub fn structure_within(bootstrap: &Bootstrap, limits: Limits) -> Report {
    let mut check = Check { bootstrap, limits, report: Report::new(limits) };
    check.chunk_table();
    match walk(bootstrap, limits, &mut check) {
        Ok(names) => check.link_counts(&names),
        // Flaws do not end it, and nothing else does.
        Err(error) => check.report.error("/", &error),
    }
    check.report
}

struct Check<'a> {
    bootstrap: &'a Bootstrap,
    limits: Limits,
    report: Report,
}

impl Visitor for Check<'_> {
    type Error = ReadError;

    fn enter(&mut self, found: &Found<'_>) -> Result<(), ReadError> {
        let path = found.path;
        if !found.is_link() {
            self.report.inodes += 1;
            let (kind, listed) = (found.inode.kind, found.listed_kind);
            if kind != listed {
                self.add(path, format!("its inode is of type {kind}, its directory entry says {listed}"));
            }
            if let Err(error) = self.content(found) {
                self.error(path, &error);
            }
        }
        // The root has no name.
        if !path.is_empty() {
            match self.bootstrap.lookup(found.directory, found.name()) {
                Ok(Some(nid)) if nid == found.nid => {}
                Ok(_) => self.add(path, "listed, but not found by name"),
                Err(error) => self.error(path, &error),
            }
        }
        if found.inode.kind == FileType::Directory && self.bootstrap.version() == Version::V6 {
            for (name, expected) in [(&b"."[..], found.nid), (b"..", found.directory)] {
                if let Err(error) = self.leads(found, name, expected) {
                    self.error(path, &error);
                }
            }
        }
        Ok(())
    }

    fn leave(&mut self, _path: &[u8], _nid: Nid) -> Result<(), ReadError> {
        Ok(())
    }

    fn flaw(&mut self, path: &[u8], _nid: Nid, flaw: Flaw) -> Result<(), ReadError> {
        match flaw {
            Flaw::Inode(error) => {
                self.report.inodes += 1;
                self.error(path, &error);
            }
            Flaw::Directory(error) => self.error(path, &error),
            Flaw::Order => {
                self.add(path, "not in byte order among its neighbours; expected ascending names");
            }
            Flaw::SecondName => self.add(path, "a directory with a second name"),
            // A program in the image may go there step by step.
            Flaw::LongPath => {}
        }
        Ok(())
    }
}

impl Check<'_> {
    /// A path as it is shown: a very long one loses its start.
    fn shown(&self, path: &[u8]) -> String {
        match path.len().checked_sub(self.limits.path_bytes) {
            Some(over) if over > 0 => format!(".../{}", path[over..].escape_ascii()),
            _ => format!("/{}", path.escape_ascii()),
        }
    }

    fn add(&mut self, path: &[u8], problem: impl Into<String>) {
        let subject = self.shown(path);
        self.report.add(subject, problem);
    }

    fn error(&mut self, path: &[u8], error: &ReadError) {
        let subject = self.shown(path);
        self.report.error(subject, error);
    }

    /// Whether `name` of a directory leads where it should.
    fn leads(&mut self, found: &Found<'_>, name: &[u8], expected: Nid) -> Result<(), ReadError> {
        let leads = self.bootstrap.lookup(found.nid, name)?;
        if leads != Some(expected) {
            let leads = leads.map_or_else(|| "nowhere".to_owned(), |nid| format!("to inode {nid}"));
            let problem = format!("{} leads {leads}; expected inode {expected}", name.escape_ascii());
            self.add(found.path, problem);
        }
        Ok(())
    }

    fn content(&mut self, found: &Found<'_>) -> Result<(), ReadError> {
        self.bootstrap.xattrs(found.nid)?;
        match found.inode.kind {
            FileType::Symlink => self.bootstrap.read_link(found.nid).map(|_| ()),
            FileType::Regular => self.file(found.nid, found.inode.size, found.path),
            _ => Ok(()),
        }
    }

    fn file(&mut self, nid: Nid, size: u64, path: &[u8]) -> Result<(), ReadError> {
        let pieces = self.bootstrap.chunks(nid, 0..size)?;
        for piece in pieces {
            let piece = piece?;
            // Without a chunk table, nothing more is known here.
            if !self.bootstrap.has_chunk_table() {
                continue;
            }
            let chunk = self.bootstrap.described_chunk(piece.blob, piece.chunk)?;
            let offset = piece.file_offset;
            if chunk.uncompressed_offset != piece.uncompressed_offset {
                let (found, expected) = (chunk.uncompressed_offset, piece.uncompressed_offset);
                let problem =
                    format!("the chunk table has its chunk for {offset} at {found}; expected {expected}");
                self.add(path, problem);
            }
            if chunk.uncompressed_size != piece.len {
                let (found, expected) = (chunk.uncompressed_size, piece.len);
                self.add(path, format!("its chunk for {offset} has {found} bytes; expected {expected}"));
            }
        }
        Ok(())
    }

    fn chunk_table(&mut self) {
        let blobs = match self.bootstrap.blobs_with_chunks() {
            Ok(blobs) => blobs,
            Err(error) => return self.report.error("chunk table", &error),
        };
        for (index, blob) in blobs.iter().enumerate() {
            let subject = format!("blob {}", blob_name(blob));
            let stated = self.bootstrap.chunk_count(BlobIndex(index as u8));
            if stated as usize != blob.chunks.len() {
                self.report.add(&subject, format!("{} chunks; expected {stated}", blob.chunks.len()));
            }
            // Chunks that overlap would overwrite each other in a cache.
            let mut chunks: Vec<&Chunk> =
                blob.chunks.iter().filter(|chunk| chunk.uncompressed_size > 0).collect();
            chunks.sort_unstable_by_key(|chunk| chunk.uncompressed_offset);
            for pair in chunks.windows(2) {
                let end = pair[0].uncompressed_offset + u64::from(pair[0].uncompressed_size);
                if end > pair[1].uncompressed_offset {
                    let (a, b) = (pair[0].uncompressed_offset, pair[1].uncompressed_offset);
                    self.report
                        .add(&subject, format!("the chunks at uncompressed offsets {a} and {b} overlap"));
                }
            }
            if let Some(chunk) =
                chunks.iter().find(|chunk| !chunk.uncompressed_offset.is_multiple_of(BLOCK_SIZE))
                && self.bootstrap.version() == Version::V6
            {
                let offset = chunk.uncompressed_offset;
                self.report.add(
                    &subject,
                    format!("a chunk at uncompressed offset {offset}; expected multiples of {BLOCK_SIZE}"),
                );
            }
        }
    }

    fn link_counts(&mut self, names: &FileNames) {
        for (nid, counted) in names.counts() {
            let Ok(inode) = self.bootstrap.inode(nid) else { continue };
            // nydus-image makes files of their own of the names of a symbolic link, device or pipe (in v6), and leaves each
            // the count that they had together.
            let is_wrong = match inode.kind {
                FileType::Regular => inode.nlink != counted,
                _ => inode.nlink < counted,
            };
            if is_wrong {
                let path = names.path(nid, self.limits.path_bytes);
                self.add(&path, format!("its link count is {}; it has {counted} names", inode.nlink));
            }
        }
    }
}
