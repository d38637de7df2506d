//! Layers as files: what upstream's `nydus-image create` leaves, and what registries hold.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::blob::Blob;
use crate::blob::stream::{OwnBootstrap, TocError, own_bootstrap};
use crate::bootstrap::{Bootstrap, ReadError, Version};
use crate::digest::Digest;
use crate::layout::flags;
use crate::tree::Layer;

/// A file is digested in steps of this many bytes.
const BUFFER_BYTES: usize = 1 << 20;

/// Why a file is no layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum OpenLayerError {
    #[error("cannot read {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: cannot read the bootstrap in this blob", path.display())]
    Stream { path: PathBuf, source: TocError },
    #[error("{}: expected a layer's bootstrap, or a blob with the layer's bootstrap in it", path.display())]
    Bootstrap { path: PathBuf, source: ReadError },
    #[error(
        "{}: this bootstrap does not say which blob it belongs to: expected a file named by the SHA-256 of the blob \
         (64 hexadecimal digits, and any suffixes)",
        path.display()
    )]
    Unnamed { path: PathBuf },
}

/// Reads a layer from a file: the bootstrap of one layer, or a layer's blob, whose last part is that bootstrap.
///
/// A layer's bootstrap does not know its own blob's id. It is the file's name up to the first dot, as upstream has it, where
/// that is a digest; of a blob under another name, it is computed.
///
/// # Errors
///
/// When the file cannot be read, is neither, or does not say which blob is meant.
pub fn open_layer(path: &Path) -> Result<Layer, OpenLayerError> {
    let io = |source| OpenLayerError::Io { path: path.to_owned(), source };
    let broken = |source| OpenLayerError::Bootstrap { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let read = |range: std::ops::Range<u64>| {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    };
    let inside = own_bootstrap(size, read).map_err(io)?;
    let inside = inside.map_err(|source| OpenLayerError::Stream { path: path.to_owned(), source })?;
    let is_stream = inside.is_some();
    let (mut bootstrap, toc) = match inside {
        Some(OwnBootstrap { bytes, toc }) => (Bootstrap::from_bytes(bytes).map_err(broken)?, toc),
        None => (Bootstrap::open(path).map_err(broken)?, None),
    };
    if bootstrap.blobs().iter().any(|blob| blob.id.is_none()) {
        let id = match id_in_name(path) {
            Some(id) => id,
            None if is_stream => sha256(&file).map_err(io)?,
            None => return Err(OpenLayerError::Unnamed { path: path.to_owned() }),
        };
        bootstrap.set_own_blob(id, is_stream.then_some(size), toc.as_ref());
    }
    let mut layer = bootstrap.to_layer().map_err(broken)?;
    if bootstrap.version() == Version::V5 {
        layer.blobs.iter_mut().for_each(align_chunks);
    }
    Ok(layer)
}

/// Gives the chunks of a blob of RAFS v5 places that RAFS v6 can address. In v5 they may follow one another at any byte; where
/// they lie in the uncompressed blob is a matter of bootstraps alone, for blobs of v5 have no chunk information. The place
/// follows from the index, so that all layers that share the blob have the same, whatever they know of it.
fn align_chunks(blob: &mut Blob) {
    if blob.features & flags::blob::ALIGNED != 0 {
        return;
    }
    let chunk_size = u64::from(blob.chunk_size);
    for (chunk, index) in blob.chunks.iter_mut().zip(0..) {
        chunk.uncompressed_offset = index * chunk_size;
    }
    blob.uncompressed_size = blob.chunks.len() as u64 * chunk_size;
    blob.features |= flags::blob::ALIGNED;
}

fn id_in_name(path: &Path) -> Option<Digest> {
    path.file_name()?.to_str()?.split('.').next()?.parse().ok()
}

fn sha256(mut file: &File) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Digest(hash.finalize().into())),
            Ok(length) => hash.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
