//! Checking a bootstrap's structure.

use std::collections::HashMap;

use super::Report;
use crate::blob::source::name as blob_name;
use crate::blob::{BlobIndex, Chunk};
use crate::bootstrap::{Bootstrap, Inode, Nid, ReadError, Version};
use crate::layout::BLOCK_SIZE;
use crate::layout::v6::FileType;

/// The longest path that is spelled out, in bytes.
const MAX_PATH: usize = 4096;

/// Checks everything that a bootstrap says: inodes, names and their order, link counts, chunk addresses and chunks.
pub fn structure(bootstrap: &Bootstrap) -> Report {
    let mut check =
        Check { bootstrap, report: Report::default(), budget: bootstrap.size(), names: HashMap::new() };
    check.chunk_table();
    check.tree();
    check.link_counts();
    check.report
}

/// How an inode was met.
struct Seen {
    path: Vec<u8>,
    stated: u32,
    counted: u32,
    is_directory: bool,
}

struct Check<'a> {
    bootstrap: &'a Bootstrap,
    report: Report,
    /// Bytes that the content of directories and chunk addresses may still take; they do not overlap.
    budget: u64,
    names: HashMap<Nid, Seen>,
}

fn shown(path: &[u8]) -> String {
    if path.is_empty() { "/".to_owned() } else { path.escape_ascii().to_string() }
}

/// A path below another one; a very long one loses its start.
fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let path = if path.len() > MAX_PATH { b"/..." } else { path };
    [path, b"/", name].concat()
}

impl Check<'_> {
    fn tree(&mut self) {
        let root = self.bootstrap.root();
        let mut pending = vec![(root, root, Vec::new())];
        self.inode(root, &[], FileType::Directory);
        while let Some((nid, parent, path)) = pending.pop() {
            if let Err(error) = self.directory(nid, parent, &path, &mut pending) {
                self.report.error(shown(&path), &error);
            }
        }
    }

    fn directory(
        &mut self,
        nid: Nid,
        parent: Nid,
        path: &[u8],
        pending: &mut Vec<(Nid, Nid, Vec<u8>)>,
    ) -> Result<(), ReadError> {
        self.spend(nid, self.bootstrap.directory_size(nid)?)?;
        if self.bootstrap.version() == Version::V6 {
            for (name, expected) in [(&b"."[..], nid), (b"..", parent)] {
                let found = self.bootstrap.lookup(nid, name)?;
                if found != Some(expected) {
                    let problem =
                        format!("{} leads to {found:?}; expected {expected:?}", name.escape_ascii());
                    self.report.add(shown(path), problem);
                }
            }
        }
        let mut last: Option<&[u8]> = None;
        for entry in self.bootstrap.read_dir(nid, 0)? {
            let entry = entry?;
            let path = join(path, entry.name);
            if last.is_some_and(|last| last >= entry.name) {
                self.report
                    .add(shown(&path), "not in byte order among its neighbours; expected ascending names");
            } else if self.bootstrap.lookup(nid, entry.name)? != Some(entry.nid) {
                self.report.add(shown(&path), "listed, but not found by name");
            }
            last = Some(entry.name);
            let is_new = self.inode(entry.nid, &path, entry.kind);
            if entry.kind == FileType::Directory {
                if is_new {
                    pending.push((entry.nid, nid, path));
                } else {
                    self.report.add(shown(&path), "a directory with a second name");
                }
            }
        }
        Ok(())
    }

    fn spend(&mut self, nid: Nid, size: u64) -> Result<(), ReadError> {
        let expected = "directories and chunk addresses that do not overlap";
        let left = self.budget.checked_sub(size);
        self.budget = left.ok_or(ReadError::Corrupt { what: "inode", at: nid.0, expected })?;
        Ok(())
    }

    /// Looks at an inode the first time it is met, and says whether it is that time.
    fn inode(&mut self, nid: Nid, path: &[u8], kind: FileType) -> bool {
        if let Some(seen) = self.names.get_mut(&nid) {
            seen.counted += 1;
            return false;
        }
        self.report.inodes += 1;
        let inode = match self.bootstrap.inode(nid) {
            Ok(inode) => inode,
            Err(error) => {
                self.report.error(shown(path), &error);
                return false;
            }
        };
        let is_directory = inode.kind == FileType::Directory;
        let counted = if is_directory { 2 } else { 1 };
        self.names.insert(nid, Seen { path: path.to_vec(), stated: inode.nlink, counted, is_directory });
        if inode.kind != kind {
            self.report
                .add(shown(path), format!("its inode is a {:?}, its directory entry a {kind:?}", inode.kind));
        }
        if let Err(error) = self.content(nid, &inode, path) {
            self.report.error(shown(path), &error);
        }
        is_directory
    }

    fn content(&mut self, nid: Nid, inode: &Inode, path: &[u8]) -> Result<(), ReadError> {
        self.bootstrap.xattrs(nid)?;
        match inode.kind {
            FileType::Symlink => self.bootstrap.read_link(nid).map(|_| ()),
            FileType::Regular => self.file(nid, inode.size, path),
            _ => Ok(()),
        }
    }

    fn file(&mut self, nid: Nid, size: u64, path: &[u8]) -> Result<(), ReadError> {
        let pieces = self.bootstrap.chunks(nid, 0..size)?;
        self.spend(nid, pieces.stored_size())?;
        for piece in pieces {
            let piece = piece?;
            self.report.chunks += 1;
            // Without a chunk table, nothing more is known here.
            if !self.bootstrap.has_chunk_table() {
                continue;
            }
            let chunk = self.bootstrap.described_chunk(piece.blob, piece.chunk)?;
            let subject = || format!("{} at {}", shown(path), piece.file_offset);
            if chunk.uncompressed_offset != piece.uncompressed_offset {
                let (found, expected) = (chunk.uncompressed_offset, piece.uncompressed_offset);
                self.report
                    .add(subject(), format!("the chunk table has its chunk at {found}; expected {expected}"));
            }
            if chunk.uncompressed_size != piece.len {
                let (found, expected) = (chunk.uncompressed_size, piece.len);
                self.report.add(subject(), format!("its chunk has {found} bytes; expected {expected}"));
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
                    format!("a chunk at uncompressed offset {offset}; expected multiples of 4096"),
                );
            }
        }
    }

    fn link_counts(&mut self) {
        let mut wrong: Vec<_> =
            self.names.values().filter(|seen| !seen.is_directory && seen.stated != seen.counted).collect();
        wrong.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        for seen in wrong {
            let problem = format!("its link count is {}; it has {} names", seen.stated, seen.counted);
            self.report.add(shown(&seen.path), problem);
        }
    }
}
