//! Checking a bootstrap's structure.

use std::collections::HashMap;

use super::Report;
use crate::blob::source::name as blob_name;
use crate::blob::{BlobIndex, Chunk};
use crate::bootstrap::{At, Bootstrap, Inode, Nid, ReadError, Version};
use crate::layout::BLOCK_SIZE;
use crate::layout::v6::FileType;

/// The longest path that is spelled out, in bytes.
const MAX_PATH: usize = 4096;

/// Checks everything that a bootstrap says: inodes, names and their order, link counts, chunk addresses and chunks.
pub fn structure(bootstrap: &Bootstrap) -> Report {
    let mut check = Check {
        bootstrap,
        report: Report::default(),
        budget: 2 * bootstrap.size(),
        directories: Vec::new(),
        seen: HashMap::new(),
    };
    check.chunk_table();
    check.tree();
    check.link_counts();
    check.report
}

/// A name: the place of its directory in [`Check::directories`], and itself. Paths are put together only where one is
/// shown: a bootstrap of many files below long names would take a hundred times its size otherwise.
#[derive(Clone)]
struct Name {
    directory: usize,
    name: Box<[u8]>,
}

/// How an inode was met.
struct Seen {
    name: Name,
    stated: u32,
    counted: u32,
    kind: FileType,
}

struct Check<'a> {
    bootstrap: &'a Bootstrap,
    report: Report,
    /// Bytes that inodes, the content of directories and chunk addresses may still take. They do not overlap (but in
    /// version 5, where directories consist of inodes, these count twice), so together they are no larger than the
    /// bootstrap.
    budget: u64,
    /// The directories that were gone into. The root is the first, and its own directory.
    directories: Vec<Name>,
    seen: HashMap<Nid, Seen>,
}

fn shown(path: &[u8]) -> String {
    if path.is_empty() { "/".to_owned() } else { path.escape_ascii().to_string() }
}

impl Check<'_> {
    fn tree(&mut self) {
        let root = self.bootstrap.root();
        let name = Name { directory: 0, name: [].into() };
        self.inode(root, &name, FileType::Directory);
        let mut pending = vec![(root, root, name)];
        while let Some((nid, parent, name)) = pending.pop() {
            self.directories.push(name);
            let place = self.directories.len() - 1;
            if let Err(error) = self.directory(nid, parent, place, &mut pending) {
                let subject = self.directory_path(place);
                self.report.error(shown(&subject), &error);
            }
        }
    }

    /// The path of a directory. A very long one loses its start.
    fn directory_path(&self, place: usize) -> Vec<u8> {
        let (mut names, mut length, mut at) = (Vec::new(), 0, place);
        while at > 0 {
            if length > MAX_PATH {
                names.push(&b"..."[..]);
                break;
            }
            let Name { directory, name } = &self.directories[at];
            length += name.len() + 1;
            names.push(name);
            at = *directory;
        }
        names.iter().rev().flat_map(|name| [b"/", *name].concat()).collect()
    }

    fn path(&self, name: &Name) -> String {
        let mut path = self.directory_path(name.directory);
        if !name.name.is_empty() {
            path.extend_from_slice(&[b"/", &name.name[..]].concat());
        }
        shown(&path)
    }

    fn add(&mut self, name: &Name, problem: impl Into<String>) {
        let subject = self.path(name);
        self.report.add(subject, problem);
    }

    fn directory(
        &mut self,
        nid: Nid,
        parent: Nid,
        place: usize,
        pending: &mut Vec<(Nid, Nid, Name)>,
    ) -> Result<(), ReadError> {
        self.spend(nid, self.bootstrap.directory_size(nid)?)?;
        if self.bootstrap.version() == Version::V6 {
            for (name, expected) in [(&b"."[..], nid), (b"..", parent)] {
                let found = self.bootstrap.lookup(nid, name)?;
                if found != Some(expected) {
                    let found = found.map_or_else(|| "nowhere".to_owned(), |nid| format!("to inode {nid}"));
                    let problem = format!("{} leads {found}; expected inode {expected}", name.escape_ascii());
                    let subject = self.directory_path(place);
                    self.report.add(shown(&subject), problem);
                }
            }
        }
        let mut last: Option<&[u8]> = None;
        for entry in self.bootstrap.read_dir(nid, 0)? {
            let entry = entry?;
            let name = Name { directory: place, name: entry.name.into() };
            if last.is_some_and(|last| last >= entry.name) {
                self.add(&name, "not in byte order among its neighbours; expected ascending names");
            } else if self.bootstrap.lookup(nid, entry.name)? != Some(entry.nid) {
                self.add(&name, "listed, but not found by name");
            }
            last = Some(entry.name);
            let is_new = self.inode(entry.nid, &name, entry.kind);
            if entry.kind == FileType::Directory {
                if is_new {
                    pending.push((entry.nid, nid, name));
                } else {
                    self.add(&name, "a directory with a second name");
                }
            }
        }
        Ok(())
    }

    fn spend(&mut self, nid: Nid, size: u64) -> Result<(), ReadError> {
        let expected = "inodes, directories and chunk addresses that do not overlap";
        let left = self.budget.checked_sub(size);
        self.budget = left.ok_or(ReadError::corrupt("inode", At::Number(nid.0), expected))?;
        Ok(())
    }

    /// Looks at an inode the first time it is met, and says whether it is that time.
    fn inode(&mut self, nid: Nid, name: &Name, kind: FileType) -> bool {
        if let Some(seen) = self.seen.get_mut(&nid) {
            seen.counted += 1;
            return false;
        }
        self.report.inodes += 1;
        let inode = match self.bootstrap.inode(nid) {
            Ok(inode) => inode,
            Err(error) => {
                let subject = self.path(name);
                self.report.error(subject, &error);
                return false;
            }
        };
        let is_directory = inode.kind == FileType::Directory;
        let counted = if is_directory { 2 } else { 1 };
        self.seen.insert(nid, Seen { name: name.clone(), stated: inode.nlink, counted, kind: inode.kind });
        if inode.kind != kind {
            self.add(name, format!("its inode is of type {}, its directory entry says {kind}", inode.kind));
        }
        if let Err(error) = self.content(nid, &inode, name) {
            let subject = self.path(name);
            self.report.error(subject, &error);
        }
        is_directory
    }

    fn content(&mut self, nid: Nid, inode: &Inode, name: &Name) -> Result<(), ReadError> {
        self.spend(nid, self.bootstrap.inode_size(nid)?)?;
        self.bootstrap.xattrs(nid)?;
        match inode.kind {
            FileType::Symlink => self.bootstrap.read_link(nid).map(|_| ()),
            FileType::Regular => self.file(nid, inode.size, name),
            _ => Ok(()),
        }
    }

    fn file(&mut self, nid: Nid, size: u64, name: &Name) -> Result<(), ReadError> {
        let pieces = self.bootstrap.chunks(nid, 0..size)?;
        self.spend(nid, pieces.stored_size())?;
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
                self.add(name, problem);
            }
            if chunk.uncompressed_size != piece.len {
                let (found, expected) = (chunk.uncompressed_size, piece.len);
                self.add(name, format!("its chunk for {offset} has {found} bytes; expected {expected}"));
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
        let seen = std::mem::take(&mut self.seen);
        // nydus-image makes files of their own of the names of a symbolic link, device or pipe (in v6), and leaves each
        // the count that they had together.
        let is_wrong = |seen: &&Seen| match seen.kind {
            FileType::Directory => false,
            FileType::Regular => seen.stated != seen.counted,
            _ => seen.stated < seen.counted,
        };
        let mut wrong: Vec<_> = seen.values().filter(is_wrong).collect();
        // Directories were met in the order of the tree; the report should not depend on a hash.
        wrong
            .sort_unstable_by(|a, b| (a.name.directory, &a.name.name).cmp(&(b.name.directory, &b.name.name)));
        for seen in wrong {
            let problem = format!("its link count is {}; it has {} names", seen.stated, seen.counted);
            self.add(&seen.name, problem);
        }
    }
}
