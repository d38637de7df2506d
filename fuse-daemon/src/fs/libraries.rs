//! Where in an image the libraries are that a program needs.

use std::ops::Range;

use object::elf;
use rafs::bootstrap::{Bootstrap, Nid, ReadError as BootstrapError};
use rafs::layout::v6::FileType;

use super::linked::{LibraryNames, Linked, NAMES_LIMIT_BYTES, name};
use super::program::HEAD_BYTES;
use super::{FileSystem, FsError};
use crate::front::Piece;

/// Where loaders look, if nothing says otherwise; before that in directories that are called after the processor.
const DIRECTORIES: [&str; 4] = ["lib64", "usr/lib64", "lib", "usr/lib"];

/// Symbolic links on the way to a library, as the kernel has it.
const LINKS_LIMIT: u32 = 40;

/// Of a program that is larger only this much is fetched, which is where the loader looks first.
const WHOLE_LIMIT_BYTES: u64 = 16 << 20;
const BEGINNING_BYTES: u64 = 1 << 20;

impl FileSystem {
    /// Whether a file's backend takes long to answer.
    ///
    /// # Errors
    ///
    /// [`FsError::Bootstrap`].
    pub(crate) fn is_far(&self, file: Nid) -> Result<bool, FsError> {
        self.sound(|bootstrap| {
            let Some(piece) = bootstrap.chunks(file, 0..1)?.next() else { return Ok(false) };
            Ok(self.front.is_far(self.blob(piece?.blob)?.id()))
        })
    }

    /// The part of a program, or of a library, that is worth to be fetched before it is read.
    ///
    /// # Errors
    ///
    /// [`FsError::Bootstrap`].
    pub(crate) fn needed_part(&self, file: Nid) -> Result<Range<u64>, FsError> {
        self.sound(|bootstrap| {
            let size = bootstrap.inode(file)?.size;
            Ok(0..if size > WHOLE_LIMIT_BYTES { BEGINNING_BYTES } else { size })
        })
    }

    /// What a program says of its libraries, as far as it is in the cache.
    ///
    /// # Errors
    ///
    /// [`FsError`].
    pub(crate) fn linked(&self, file: Nid) -> Result<Option<Linked>, FsError> {
        let head = self.cached(file, 0..HEAD_BYTES as u64)?;
        Ok(head.and_then(|head| Linked::of(&head)))
    }

    /// Where in a program the names of its libraries are.
    ///
    /// # Errors
    ///
    /// [`FsError`].
    pub(crate) fn names_of_libraries(
        &self,
        file: Nid,
        linked: &Linked,
    ) -> Result<Option<LibraryNames>, FsError> {
        let entries = self.cached(file, linked.entries.clone())?;
        Ok(entries.and_then(|entries| linked.names(&entries)))
    }

    /// The loader and the libraries that a program needs, and that the image has.
    ///
    /// # Errors
    ///
    /// [`FsError`].
    pub(crate) fn libraries(
        &self,
        file: Nid,
        linked: &Linked,
        names: &LibraryNames,
    ) -> Result<Vec<Nid>, FsError> {
        let loader = linked.loader.clone().map(|loader| self.cached(file, loader)).transpose()?.flatten();
        let all = self.cached(file, names.all.clone())?.unwrap_or_default();
        self.sound(|bootstrap| {
            let mut found = Vec::new();
            if let Some(path) = loader.as_deref().and_then(|loader| name(loader, 0)) {
                found.extend(resolve(bootstrap, path)?);
            }
            for library in names.needed.iter().filter_map(|at| name(&all, *at)) {
                found.extend(look_for(bootstrap, linked.machine, library)?);
            }
            Ok(found)
        })
    }

    /// Bytes of a file, fewer at its end; `None` if not all of them are in the cache, or they are more than the names of all
    /// libraries may be, which are the most that is looked at.
    fn cached(&self, file: Nid, range: Range<u64>) -> Result<Option<Vec<u8>>, FsError> {
        if range.end.saturating_sub(range.start) > NAMES_LIMIT_BYTES {
            return Ok(None);
        }
        let (pieces, closed) = self.sound(|bootstrap| self.pieces(bootstrap, file, range))?;
        if !closed.is_empty() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        for piece in pieces {
            let start = bytes.len();
            match piece {
                Piece::Zeros(len) => bytes.resize(start + len, 0),
                Piece::Chunk { blob, chunk, offset, len } => {
                    bytes.resize(start + len, 0);
                    // One that cannot be read is told of by who reads it.
                    if !blob.read(chunk, &mut bytes[start..], offset).unwrap_or_default() {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(Some(bytes))
    }
}

/// The library that loaders find by this name.
fn look_for(bootstrap: &Bootstrap, machine: u16, name: &[u8]) -> Result<Option<Nid>, BootstrapError> {
    if name.contains(&b'/') {
        return resolve(bootstrap, name);
    }
    let by_processor = match machine {
        elf::EM_X86_64 => &["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"][..],
        elf::EM_AARCH64 => &["lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu"],
        _ => &[],
    };
    for directory in by_processor.iter().chain(&DIRECTORIES) {
        let path = [directory.as_bytes(), b"/", name].concat();
        if let Some(found) = resolve(bootstrap, &path)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The regular file that a path from the root leads to, over symbolic links.
fn resolve(bootstrap: &Bootstrap, path: &[u8]) -> Result<Option<Nid>, BootstrapError> {
    let parts = |path: &[u8]| -> Vec<Vec<u8>> {
        let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
        // The first is the last.
        parts.rev().map(<[u8]>::to_vec).collect()
    };
    let (mut at, mut rest, mut links) = (bootstrap.root(), parts(path), 0);
    while let Some(part) = rest.pop() {
        if part == b".." {
            at = bootstrap.parent(at)?;
            continue;
        }
        let Some(found) = bootstrap.lookup(at, &part)? else { return Ok(None) };
        match bootstrap.inode(found)?.kind {
            FileType::Directory => at = found,
            FileType::Symlink if links < LINKS_LIMIT => {
                links += 1;
                let target = bootstrap.read_link(found)?;
                if target.starts_with(b"/") {
                    at = bootstrap.root();
                }
                rest.extend(parts(target));
            }
            FileType::Regular if rest.is_empty() => return Ok(Some(found)),
            _ => return Ok(None),
        }
    }
    Ok(None)
}
