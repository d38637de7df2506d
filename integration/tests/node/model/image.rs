//! An image as the model knows it: what each file holds, and which chunks that needs.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use fuse_daemon::control::BlobId;
use rafs::bootstrap::Bootstrap;
use rafs::digest::{Digest, DigestAlgorithm};
use rafs::layout::flags::blob::BATCH;

/// A chunk: its blob, and its index there.
pub(super) type ChunkKey = (BlobId, u32);

/// Who has blobs.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Origin {
    /// One of those that may fail: a registry or, the last of them, a web server with directories.
    Remote(usize),
    /// Directories of this machine.
    Local,
}

/// Where an image's blobs can be fetched.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Home {
    /// Which of the laboratory's.
    pub(super) origin: Origin,
    /// The repository or directory there.
    pub(super) name: String,
}

#[derive(Debug)]
pub(super) struct Image {
    pub(super) name: String,
    pub(super) bootstrap: PathBuf,
    pub(super) blobs: Vec<BlobId>,
    /// Regular files, by path from the root.
    pub(super) files: BTreeMap<String, File>,
    /// Of a hostile image instead: what it says of them.
    pub(super) claims: BTreeMap<String, Arc<[ClaimedPiece]>>,
    pub(super) homes: Vec<Home>,
    /// Whose blobs it says of what is not so: it harms nobody, and nothing is read from it that is not what it says.
    pub(super) hostile_to: Option<usize>,
    /// A mount fetches what the bootstrap lacks.
    pub(super) fetches_to_mount: bool,
}

#[derive(Debug)]
pub(super) struct File {
    pub(super) content: Arc<[u8]>,
    pub(super) pieces: Vec<Piece>,
}

/// Bytes of a file that are in one chunk.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) chunk: ChunkKey,
    pub(super) range: Range<u64>,
}

/// Bytes of a hostile image's file that are in one chunk.
#[derive(Debug)]
pub(super) struct ClaimedPiece {
    pub(super) range: Range<u64>,
    pub(super) claim: Claim,
}

/// What a bootstrap says of the bytes of a piece.
#[derive(Debug)]
pub(super) enum Claim {
    /// Their digest.
    Digest(DigestAlgorithm, Digest),
    /// The chunk has fewer of them: nobody can read them.
    Impossible,
    /// Nothing: they are a part of a chunk alone.
    Nothing,
}

impl File {
    /// The chunks that a part of the file needs.
    pub(super) fn chunks(&self, part: &Range<u64>) -> impl Iterator<Item = ChunkKey> {
        let part = part.clone();
        let pieces = self.pieces.iter();
        let needed = pieces.filter(move |piece| piece.range.start < part.end && part.start < piece.range.end);
        needed.map(|piece| piece.chunk)
    }
}

impl Image {
    pub(super) fn is_hostile(&self) -> bool {
        self.hostile_to.is_some()
    }

    /// The regular files that it has, or an honest one would have.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().chain(self.claims.keys()).map(String::as_str)
    }

    /// An image whose files hold what is in `contents`.
    pub(super) fn new(
        name: String,
        bootstrap: PathBuf,
        contents: BTreeMap<String, Arc<[u8]>>,
        homes: Vec<Home>,
    ) -> Result<Self> {
        let read = Bootstrap::open(&bootstrap)?;
        let ids: Option<Vec<_>> = read.blobs().iter().map(|blob| blob.id.map(BlobId)).collect();
        let blobs = ids.ok_or_else(|| anyhow!("{name}: a blob without an id"))?;
        let mut files = BTreeMap::new();
        for (path, content) in contents {
            let nid = read.lookup_path(path.as_bytes())?;
            let nid = nid.ok_or_else(|| anyhow!("{name}: the bootstrap lacks {path}"))?;
            let mut pieces = Vec::new();
            for piece in read.chunks(nid, 0..content.len() as u64)? {
                let piece = piece?;
                pieces.push(Piece {
                    chunk: (blobs[usize::from(piece.blob.0)], piece.chunk.0),
                    range: piece.file_offset..piece.file_offset + u64::from(piece.len),
                });
            }
            files.insert(path, File { content, pieces });
        }
        let fetches_to_mount =
            !read.has_chunk_table() || read.blobs().iter().any(|blob| blob.features & BATCH != 0);
        let claims = BTreeMap::new();
        Ok(Self { name, bootstrap, blobs, files, claims, homes, hostile_to: None, fetches_to_mount })
    }
}

/// The regular files below a directory, by path from there.
pub(super) fn files_below(root: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        let listed = fs::read_dir(&directory).with_context(|| format!("listing {}", directory.display()))?;
        for entry in listed {
            let entry = entry.with_context(|| format!("listing {}", directory.display()))?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_file() {
                let path = entry.path();
                let relative = path.strip_prefix(root)?.to_str().context("a path in UTF-8")?.to_owned();
                files.insert(relative, path);
            }
        }
    }
    Ok(files)
}

/// What the regular files below a directory hold.
pub(super) fn contents_below(root: &Path) -> Result<BTreeMap<String, Arc<[u8]>>> {
    let files = files_below(root)?.into_iter();
    files.map(|(path, file)| Ok((path, Arc::from(fs::read(file)?)))).collect()
}
