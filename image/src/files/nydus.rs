//! The files of a nydus image: its bootstrap says where they are, and their chunks alone are fetched.

use std::io::{self, Write as _};
use std::ops::Range;
use std::path::Path;

use rafs::blob::Blob;
use rafs::blob::source::{BlobSource, ChunkReader, load_chunk_info};
use rafs::bootstrap::Bootstrap;
use rafs::source::tar::TarSource;
use rafs::source::{EntryKind, Source as _};
use rafs::tree::{Image, Kind, NodeId, Tree};
use registry::client::Descriptor;

use super::collected::{Collected, Item};
use super::large::Large;
use super::{FilesError, Wanted};
use crate::source::{BlobFile, RegistryBlobs, Source, blob_digest};

/// Where the bootstrap is in its layer.
const BOOTSTRAP: &[u8] = b"image/image.boot";

/// A bootstrap may have this many bytes: some 200 for each of 20 million files.
const BOOTSTRAP_LIMIT_BYTES: u64 = 4 << 30;

pub(super) async fn collect(
    source: &Source,
    layer: &Descriptor,
    wanted: Wanted,
) -> Result<Collected, FilesError> {
    with_bootstrap(source, layer, move |bootstrap, blobs| {
        let image = bootstrap.to_image()?;
        let mut collected = Collected::default();
        let mut chunks = ChunkReader::new(bootstrap, blobs);
        walk(&image.tree, wanted, &mut chunks, &mut collected)?;
        Ok(collected)
    })
    .await
}

/// Writes the files that are wanted.
pub(super) async fn write(source: &Source, layer: &Descriptor, mut large: Large) -> Result<(), FilesError> {
    with_bootstrap(source, layer, move |bootstrap, blobs| {
        let image = bootstrap.to_image()?;
        let mut chunks = ChunkReader::new(bootstrap, blobs);
        for path in large.paths() {
            let Some(Kind::Regular { size, chunks: pieces }) = find(&image.tree, &path) else { continue };
            let mut file = large.begin(&path, *size)?;
            for piece in pieces {
                file.write(&chunks.read(piece.blob, piece.chunk)?)?;
            }
        }
        Ok(())
    })
    .await
}

/// What is at a path.
fn find<'a>(tree: &'a Tree, path: &[u8]) -> Option<&'a Kind> {
    let mut at = Tree::ROOT;
    for name in path.split(|byte| *byte == b'/') {
        let Kind::Directory(entries) = &tree.node(at).kind else { return None };
        at = *entries.iter().find(|(entry, _)| &entry[..] == name)?.1;
    }
    Some(&tree.node(at).kind)
}

/// All that the bootstrap says.
pub(super) async fn image(source: &Source, layer: &Descriptor) -> Result<Image, FilesError> {
    with_bootstrap(source, layer, |bootstrap, _| Ok(bootstrap.to_image()?)).await
}

/// Fetches the bootstrap and works on it, on a thread that may block.
async fn with_bootstrap<T: Send + 'static>(
    source: &Source,
    layer: &Descriptor,
    work: impl FnOnce(&Bootstrap, &Blobs) -> Result<T, FilesError> + Send + 'static,
) -> Result<T, FilesError> {
    let failed = |error| FilesError::Io { path: std::env::temp_dir(), error };
    let directory = tempfile::tempdir().map_err(failed)?;
    let path = directory.path().join("image.boot");
    fetch_bootstrap(source, layer, &path, |_| ()).await?;
    let (blobs, name) = (Blobs::of(source), source.name());
    let on_thread = move || {
        let mut bootstrap = Bootstrap::open_as(&path, &name)?;
        load_chunk_info(&mut bootstrap, &blobs)?;
        let worked = work(&bootstrap, &blobs);
        drop(directory);
        worked
    };
    tokio::task::spawn_blocking(on_thread).await?
}

/// Has the bootstrap of a nydus image, which is in its layer `layer`, in the new file `target`. Of the bytes that come `progress` is
/// told.
///
/// # Errors
///
/// When the layer cannot be read or holds no bootstrap, or the file cannot be written.
pub async fn fetch_bootstrap(
    source: &Source,
    layer: &Descriptor,
    target: &Path,
    progress: impl Fn(u64),
) -> Result<(), FilesError> {
    let failed = |error| FilesError::Io { path: std::env::temp_dir(), error };
    let mut packed = tempfile::tempfile().map_err(failed)?;
    let mut stream = source.blob(layer).await?;
    while let Some(piece) = stream.next().await? {
        progress(piece.len() as u64);
        packed.write_all(&piece).map_err(failed)?;
    }
    io::Seek::rewind(&mut packed).map_err(failed)?;
    let (target, layer) = (target.to_owned(), layer.digest().to_string());
    tokio::task::spawn_blocking(move || unpack(packed, &target, &layer)).await?
}

/// Has the bootstrap at `target`. The reader that builds use bounds names and headers of a stranger's archive.
fn unpack(packed: std::fs::File, target: &Path, layer: &str) -> Result<(), FilesError> {
    let tar = |error| FilesError::Layer { layer: layer.to_owned(), error };
    let io = |error| FilesError::Io { path: target.to_owned(), error };
    let mut archive = TarSource::new(packed);
    while let Some(entry) = archive.next_entry().map_err(tar)? {
        let EntryKind::Regular { size } = entry.kind else { continue };
        if entry.path != BOOTSTRAP {
            continue;
        }
        if size > BOOTSTRAP_LIMIT_BYTES {
            let (layer, limit) = (layer.to_owned(), BOOTSTRAP_LIMIT_BYTES);
            return Err(FilesError::LargeBootstrap { layer, size, limit });
        }
        let mut file = std::fs::File::create_new(target).map_err(io)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match archive.read(&mut buffer).map_err(tar)? {
                0 => return Ok(()),
                read => file.write_all(&buffer[..read]).map_err(io)?,
            }
        }
    }
    Err(FilesError::NoBootstrap(layer.to_owned()))
}

fn walk(
    tree: &Tree,
    wanted: Wanted,
    chunks: &mut ChunkReader<'_, Blobs>,
    collected: &mut Collected,
) -> Result<(), FilesError> {
    let mut todo: Vec<(Vec<u8>, NodeId)> = vec![(Vec::new(), Tree::ROOT)];
    while let Some((path, id)) = todo.pop() {
        let item = match &tree.node(id).kind {
            Kind::Directory(entries) => {
                let within = |name: &[u8]| {
                    if path.is_empty() { name.to_vec() } else { [path.as_slice(), b"/", name].concat() }
                };
                todo.extend(entries.iter().map(|(name, id)| (within(name), *id)));
                Item::Directory
            }
            Kind::Symlink(target) => Item::Symlink(target.to_vec()),
            Kind::Regular { size, chunks: pieces } if wanted(&path) => {
                // Before a chunk is fetched: what a hostile image claims costs nothing.
                if *size > collected.left() {
                    return Err(FilesError::TooMuch { what: "bytes", limit: collected.left() });
                }
                let mut content = Vec::new();
                for piece in pieces {
                    content.extend_from_slice(&chunks.read(piece.blob, piece.chunk)?);
                }
                content.truncate(usize::try_from(*size).unwrap_or(usize::MAX));
                Item::File(content)
            }
            _ => continue,
        };
        if wanted(&path) {
            collected.put(path, item)?;
        }
    }
    Ok(())
}

/// An image's blobs. Calls block: for threads outside of asynchronous tasks.
enum Blobs {
    Registry(RegistryBlobs),
    /// Files of this machine, or parts of such.
    Files(Source),
}

impl Blobs {
    fn of(source: &Source) -> Self {
        match source.registry() {
            Some((client, reference)) => {
                let (client, repository) = (client.clone(), reference.repository().clone());
                Self::Registry(RegistryBlobs::new(client, repository))
            }
            None => Self::Files(source.clone()),
        }
    }

    fn file(source: &Source, blob: &Blob) -> io::Result<BlobFile> {
        source.blob_file(&blob_digest(blob)?).map_err(io::Error::other)
    }
}

impl BlobSource for Blobs {
    fn size(&self, blob: &Blob) -> io::Result<u64> {
        match self {
            Self::Registry(registry) => registry.size(blob),
            Self::Files(source) => Ok(Self::file(source, blob)?.size()),
        }
    }

    fn read(&self, blob: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        match self {
            Self::Registry(registry) => registry.read(blob, range),
            Self::Files(source) => Self::file(source, blob)?.read(range),
        }
    }
}
