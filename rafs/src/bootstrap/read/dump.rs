//! A bootstrap as text: every field as it is stored, and where. For people, and for tests that show what moved.
//!
//! Superblocks and tables come first, by the version's own layout, then all files as [`walk`] finds them. What is decoded is
//! checked on the way, so a broken bootstrap ends the text with an error; what stands before it is as it was found.

use std::fmt::{self, Display};
use std::io::{self, Write};

use super::{Bootstrap, Nid, ReadError};
use crate::bootstrap::walk::{Found, Visitor, walk};
use crate::layout::chunk_table::ChunkEntry;
use crate::layout::v6::FileType;
use crate::limits::Limits;

/// Why a bootstrap is not shown, or not to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// It is broken.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The text cannot be written.
    #[error("cannot write the text: {0}")]
    Write(#[from] io::Error),
}

/// Writes the fields of a structure, a line each, in the format that stands next to its name.
macro_rules! fields {
    ($out:expr, $of:expr, { $($name:ident: $format:literal),+ $(,)? }) => {
        $( writeln!($out, concat!("  ", stringify!($name), ": ", $format), $of.$name)?; )+
    };
}
pub(super) use fields;

/// Writes all that `bootstrap` says to `out`, as lines of text. Names are escaped where they are no printable ASCII.
///
/// # Errors
///
/// When the bootstrap is broken, or has paths longer than `limits` allow, or `out` fails.
pub fn dump(bootstrap: &Bootstrap, limits: Limits, out: &mut dyn Write) -> Result<(), DumpError> {
    bootstrap.format.dump_tables(&bootstrap.data, out)?;
    writeln!(out, "prefetch:")?;
    for nid in bootstrap.prefetch()? {
        writeln!(out, "  inode {nid}")?;
    }
    walk(bootstrap, limits, &mut FileDump { bootstrap, out }).map(drop)
}

/// Shows the files of a walk.
struct FileDump<'a> {
    bootstrap: &'a Bootstrap,
    out: &'a mut dyn Write,
}

impl Visitor for FileDump<'_> {
    type Error = DumpError;

    fn enter(&mut self, found: &Found<'_>) -> Result<(), DumpError> {
        let path = Escaped(found.path);
        if let Some(first) = found.link_to() {
            return Ok(writeln!(self.out, "/{path}: inode {}, as /{}", found.nid, Escaped(&first))?);
        }
        writeln!(self.out, "/{path}: inode {}, {}", found.nid, found.inode.kind)?;
        self.bootstrap.format.dump_inode(&self.bootstrap.data, found.nid, self.out)?;
        for (name, value) in &self.bootstrap.stored_xattrs(found.nid)? {
            writeln!(self.out, "  attribute {} = {}", Escaped(name), Escaped(value))?;
        }
        self.content(found.nid, found.inode.kind, found.inode.size)
    }

    fn leave(&mut self, _path: &[u8], _nid: Nid) -> Result<(), DumpError> {
        Ok(())
    }
}

impl FileDump<'_> {
    fn content(&mut self, nid: Nid, kind: FileType, size: u64) -> Result<(), DumpError> {
        match kind {
            FileType::Directory => {
                for entry in self.bootstrap.read_dir(nid, 0)? {
                    let entry = entry?;
                    let name = Escaped(entry.name);
                    writeln!(self.out, "  entry {name}: inode {}, {}", entry.nid, entry.kind)?;
                }
            }
            FileType::Symlink => {
                writeln!(self.out, "  target {}", Escaped(self.bootstrap.read_link(nid)?))?;
            }
            FileType::Regular => {
                for piece in self.bootstrap.chunks(nid, 0..size)? {
                    let piece = piece?;
                    writeln!(
                        self.out,
                        "  {} bytes at {}: blob {}, chunk {}, uncompressed {}",
                        piece.len,
                        piece.file_offset,
                        piece.blob.0,
                        piece.chunk.0,
                        piece.uncompressed_offset + u64::from(piece.offset_in_chunk),
                    )?;
                }
            }
            FileType::CharDevice | FileType::BlockDevice => {
                let device = self.bootstrap.inode(nid)?.rdev;
                writeln!(self.out, "  device {}:{}", device.major, device.minor)?;
            }
            FileType::Fifo | FileType::Socket => {}
        }
        Ok(())
    }
}

/// An entry of a chunk table, on a line.
pub(super) fn chunk(entry: &ChunkEntry, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "blob {}, chunk {}: {} bytes at {}, stored {} at {}, of a file at {}, flags {:#x}, crc32 {:#x}, digest {}",
        entry.blob_index,
        entry.index,
        entry.uncompressed_size,
        entry.uncompressed_offset,
        entry.compressed_size,
        entry.compressed_offset,
        entry.file_offset,
        entry.flags,
        entry.crc32,
        crate::digest::Digest(entry.digest),
    )
}

/// Bytes as printable ASCII.
pub(super) struct Escaped<'a>(pub(super) &'a [u8]);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}
