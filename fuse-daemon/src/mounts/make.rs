//! Making a bootstrap that can be mounted, out of what an image's backends have.
//!
//! ```text
//! layer of an image (gzip tar) ── worker unpacks ──> copied, verified ──> its image.boot ──┐
//! trees of layers (zstd) ──────── worker unpacks ──> copied, verified ──> merged ──────────┴──> file
//! ```
//!
//! What the worker brings is copied before it is looked at, and verified by digests of the request. What is read and merged here is
//! what these digests stand for. The worker is told them only so that it asks another backend where one delivers what is wrong.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use rafs::blob::stream::{Toc, TocError};
use rafs::bootstrap::{Bootstrap, ReadError, WriteError, WriteOptions};
use rafs::digest::DigestAlgorithm;
use rafs::merge::MergeError;
use rafs::tree::Layer;
use registry::digest::Hasher;
use tokio::time::{Instant, timeout_at};

use super::turns::{MakingTurns, ROOM_MIB};
use crate::control::{BackendSpec, BlobId, BootstrapRequest, BootstrapSource, LayerTree};
use crate::process::RemoteWorker;
use crate::worker::{ExpectedPart, Fetcher, Place, StoredPart};

/// How long making one may take, waiting for others included: less than a container's start may.
const DEADLINE: Duration = Duration::from_secs(50);
/// Layers of which something is on its way at once.
const LAYERS_AT_ONCE: usize = 8;
/// Layers of an image at most: RAFS v6 allows 254 blobs, and layers without content have none of these.
const LAYERS: usize = 256;
/// Bytes of the trees of all layers of an image at most: they are in memory at once.
const TREES_BYTES: u64 = (ROOM_MIB as u64) << 20;
/// What a bootstrap that comes in a tar is counted as, in MiB: how large it is, nobody has said.
const TAR_ROOM_MIB: u32 = ROOM_MIB / 4;
/// Bytes of the tar of a bootstrap at most: two of the largest ones that there can be.
const TAR_BYTES: u64 = 8 << 30;
/// What gzip makes of a byte, at most.
const GZIP_RATIO: u64 = 1032;
/// A file is copied in steps of this many bytes.
const BUFFER_BYTES: usize = 128 << 10;
/// The bootstrap in the tar.
const BOOTSTRAP: &[u8] = b"image/image.boot";

/// Why a bootstrap cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum MakeError {
    #[error("cannot bring {what} of blob {blob}")]
    Bring { what: &'static str, blob: BlobId, source: io::Error },
    #[error("{what} of blob {blob} has SHA-256 {found}; expected {expected}")]
    Digest { what: &'static str, blob: BlobId, found: BlobId, expected: BlobId },
    #[error("it has {found} layers; expected 1 to {LAYERS}")]
    Layers { found: usize },
    #[error("the trees of its layers have {found} bytes; expected at most {TREES_BYTES}")]
    TooLarge { found: u64 },
    #[error("blob {blob}")]
    Toc { blob: BlobId, source: Box<TocError> },
    #[error("the layer's own bootstrap in blob {blob}")]
    Tree { blob: BlobId, source: Box<ReadError> },
    #[error("its layers do not go together")]
    Merge(#[source] Box<MergeError>),
    #[error("it cannot be written as RAFS v6")]
    Write(#[from] WriteError),
    #[error("there is no image/image.boot in the tar in blob {0}")]
    NoBootstrap(BlobId),
    #[error("it did not happen within {DEADLINE:?}")]
    Late,
    #[error("cannot write {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("a thread ended in a bug: {0}")]
    Bug(String),
}

impl MakeError {
    /// Whether what it is made of is at fault, so that trying again is of no use.
    pub(crate) fn is_of_content(&self) -> bool {
        match self {
            Self::Bring { .. } | Self::Late | Self::Io { .. } | Self::Bug(_) => false,
            Self::Write(error) => !matches!(error, WriteError::Io(_)),
            _ => true,
        }
    }
}

/// Makes the bootstrap, when it is its turn.
pub(super) async fn make(
    worker: &RemoteWorker,
    turns: &MakingTurns,
    request: BootstrapRequest,
) -> Result<(), MakeError> {
    let until = Instant::now() + DEADLINE;
    let BootstrapRequest { target, image, backends, source } = request;
    let folder = target.parent().unwrap_or(Path::new("/"));
    let turn = turns.take(folder, &backends, room_of(&source));
    let _turn = timeout_at(until, turn).await.map_err(|_| MakeError::Late)?;
    match source {
        BootstrapSource::Packed { blob, size, diff_id } => {
            let _sources = register(worker, &backends, &[blob]);
            let limit = size.saturating_mul(GZIP_RATIO).min(TAR_BYTES);
            let expected = ExpectedPart::Sha256(diff_id);
            let part = StoredPart { blob, range: 0..size, packed: true, limit, expected };
            let (tar, bytes) = bring(worker, "the layer", part, until).await?;
            on_thread(move || unpack(blob, &tar, bytes, diff_id, &target)).await?;
        }
        BootstrapSource::Layers { layers } => {
            let trees = trees(worker, &backends, layers, until).await?;
            on_thread(move || merge(trees, &target)).await?;
        }
    }
    tracing::info!(image, "made a bootstrap");
    Ok(())
}

/// MiB that are taken while a bootstrap is made.
fn room_of(source: &BootstrapSource) -> u32 {
    match source {
        BootstrapSource::Packed { .. } => TAR_ROOM_MIB,
        BootstrapSource::Layers { layers } => {
            let bytes = layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.bytes));
            u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX)
        }
    }
}

fn register(
    worker: &RemoteWorker,
    backends: &[BackendSpec],
    blobs: &[BlobId],
) -> Vec<<RemoteWorker as Fetcher>::Registration> {
    // Each is asked before those that were there, so the last of them is registered first.
    backends.iter().rev().map(|backend| worker.register(blobs, backend, Place::First)).collect()
}

async fn bring(
    worker: &RemoteWorker,
    what: &'static str,
    part: StoredPart,
    until: Instant,
) -> Result<(File, u64), MakeError> {
    let brought = worker.part(&part, until).await;
    brought.map_err(|source| MakeError::Bring { what, blob: part.blob, source })
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MakeError> + Send + 'static,
) -> Result<T, MakeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(MakeError::Bug(panic.to_string())))
}

/// The layers, the lowest first, with their own trees.
async fn trees(
    worker: &RemoteWorker,
    backends: &[BackendSpec],
    layers: Vec<LayerTree>,
    until: Instant,
) -> Result<Vec<Layer>, MakeError> {
    if !(1..=LAYERS).contains(&layers.len()) {
        return Err(MakeError::Layers { found: layers.len() });
    }
    let found = layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.bytes));
    if found > TREES_BYTES {
        return Err(MakeError::TooLarge { found });
    }
    let blobs: Vec<_> = layers.iter().map(|layer| layer.blob).collect();
    let _sources = register(worker, backends, &blobs);
    let brought = layers.into_iter().map(|layer| tree(worker, layer, until));
    futures::stream::iter(brought).buffered(LAYERS_AT_ONCE).try_collect().await
}

/// A layer with its own tree.
async fn tree(worker: &RemoteWorker, layer: LayerTree, until: Instant) -> Result<Layer, MakeError> {
    let LayerTree { blob, size, toc, offset, stored_bytes, digest, bytes } = layer;
    let tail = Toc::range(size);
    let limit = tail.end.saturating_sub(tail.start);
    let tail = StoredPart { blob, range: tail, packed: false, limit, expected: ExpectedPart::Toc(toc) };
    let range = offset..offset.saturating_add(stored_bytes);
    let expected = ExpectedPart::Sha256(digest);
    let tree = StoredPart { blob, range, packed: true, limit: bytes, expected };
    let (tail, tree) = tokio::try_join!(
        bring(worker, "the table of contents", tail, until),
        bring(worker, "the tree", tree, until)
    )?;
    on_thread(move || {
        let tail = copy("the table of contents", blob, &tail)?;
        let toc = Toc::parse(&tail, size, Some(toc.0))
            .map_err(|source| MakeError::Toc { blob, source: Box::new(source) })?;
        let tree = copy("the tree", blob, &tree)?;
        check("the tree", blob, BlobId(DigestAlgorithm::Sha256.digest(&tree)), digest)?;
        let broken = |source| MakeError::Tree { blob, source: Box::new(source) };
        let mut bootstrap = Bootstrap::from_bytes(tree).map_err(broken)?;
        bootstrap.set_own_blob(blob.0, Some(size), Some(&toc));
        bootstrap.to_layer().map_err(broken)
    })
    .await
}

/// The bytes that the worker has brought, where it cannot change them any longer.
fn copy(what: &'static str, blob: BlobId, (file, bytes): &(File, u64)) -> Result<Vec<u8>, MakeError> {
    let read = || {
        let mut copy = vec![0; usize::try_from(*bytes).map_err(io::Error::other)?];
        file.read_exact_at(&mut copy, 0)?;
        Ok(copy)
    };
    read().map_err(|source| MakeError::Bring { what, blob, source })
}

fn check(what: &'static str, blob: BlobId, found: BlobId, expected: BlobId) -> Result<(), MakeError> {
    if found == expected { Ok(()) } else { Err(MakeError::Digest { what, blob, found, expected }) }
}

fn merge(layers: Vec<Layer>, target: &Path) -> Result<(), MakeError> {
    let image = rafs::merge::merge(layers).map_err(|error| MakeError::Merge(Box::new(error)))?;
    write(target, |file| Ok(rafs::bootstrap::write(&image, &WriteOptions::default(), file)?))
}

/// Takes the bootstrap, and chunk information beside it, out of a tar of so many bytes.
fn unpack(blob: BlobId, brought: &File, bytes: u64, diff_id: BlobId, target: &Path) -> Result<(), MakeError> {
    let folder = target.parent().unwrap_or(Path::new("/"));
    let failed = |source| MakeError::Io { path: folder.to_owned(), source };
    // Without a name: nothing is left of it whatever happens.
    let mut own = unnamed_file_in(folder).map_err(failed)?;
    let found = copy_to(brought, bytes, &mut own).map_err(failed)?;
    check("the tar", blob, found, diff_id)?;
    own.rewind().map_err(failed)?;
    let mut has_bootstrap = false;
    let mut archive = tar::Archive::new(own);
    // Raw: what describes the next entry at length is not read into memory, and names here are short.
    for entry in archive.entries().map_err(failed)?.raw(true) {
        let mut entry = entry.map_err(failed)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path_bytes().into_owned();
        if name == BOOTSTRAP {
            write(target, |file| copy_all(&mut entry, file))?;
            has_bootstrap = true;
        } else if let Some(name) = chunk_info_name(&name) {
            write(&folder.join(name), |file| copy_all(&mut entry, file))?;
        }
    }
    if has_bootstrap { Ok(()) } else { Err(MakeError::NoBootstrap(blob)) }
}

/// The name of a file of chunk information: a blob's digits and `.blob.meta`.
fn chunk_info_name(path: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(path.strip_prefix(b"image/")?).ok()?;
    let digits = name.strip_suffix(".blob.meta")?;
    let is_digest = digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_digest.then_some(name)
}

fn copy_all(from: &mut impl io::Read, to: &mut File) -> Result<(), MakeError> {
    io::copy(from, to).map(drop).map_err(|error| MakeError::Write(WriteError::Io(error)))
}

/// Copies so many bytes: their digest.
fn copy_to(from: &File, bytes: u64, to: &mut File) -> io::Result<BlobId> {
    let mut hasher = Hasher::sha256();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut at = 0;
    while at < bytes {
        let wanted = usize::try_from(bytes - at).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        from.read_exact_at(&mut buffer[..wanted], at)?;
        hasher.update(&buffer[..wanted]);
        to.write_all(&buffer[..wanted])?;
        at += wanted as u64;
    }
    hasher.finish().as_ref().parse().map_err(io::Error::other)
}

/// A file without a name in `folder`.
fn unnamed_file_in(folder: &Path) -> io::Result<File> {
    let path = folder.join("tar.new");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

/// Writes a file as a whole: it is there with all that it has, or not at all.
fn write(target: &Path, fill: impl FnOnce(&mut File) -> Result<(), MakeError>) -> Result<(), MakeError> {
    let failed = |source| MakeError::Io { path: target.to_owned(), source };
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    // Who makes one in this folder has a turn, so what is there was left by a daemon that ended.
    let new = target.with_file_name(format!("{name}.new"));
    let mut file = File::create(&new).map_err(failed)?;
    let filled = fill(&mut file).and_then(|()| {
        file.sync_all().map_err(failed)?;
        std::fs::rename(&new, target).map_err(failed)?;
        let folder = target.parent().unwrap_or(Path::new("/"));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    });
    if filled.is_err() {
        // What could not be written must not be left either; that it cannot be removed changes nothing.
        let _ = std::fs::remove_file(&new);
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_chunk_information_are_told_by_their_names() {
        let digits = "a".repeat(64);
        assert!(chunk_info_name(format!("image/{digits}.blob.meta").as_bytes()).is_some());
        for other in ["image/image.boot", "image/../x.blob.meta", "x.blob.meta", "image/.blob.meta"] {
            assert_eq!(chunk_info_name(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_file_is_there_with_all_that_it_has_or_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("image.boot");
        std::fs::write(&target, "old").unwrap();
        let failing = write(&target, |file| {
            file.write_all(b"half").unwrap();
            Err(MakeError::Late)
        });
        assert!(matches!(failing, Err(MakeError::Late)));
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        write(&target, |file| copy_all(&mut b"new".as_slice(), file)).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
