//! What blobs hold that are stored already: read from the end of their streams.

use std::io;
use std::ops::Range;

use crate::blob::source::{BlobError, BlobSource, read_meta};
use crate::blob::stream::{TocError, own_bootstrap};
use crate::blob::{Blob, BlobIndex};
use crate::bootstrap::{Bootstrap, ReadError};
use crate::digest::Digest;
use crate::tree::Layer;

/// Why a stored blob cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum StoredError {
    #[error("cannot read blob {blob}: {source}")]
    Io { blob: Digest, source: io::Error },
    #[error("blob {blob}: {source}")]
    Toc { blob: Digest, source: TocError },
    #[error("the table of contents of blob {blob} is {found}; expected {expected}")]
    OtherToc { blob: Digest, found: String, expected: Digest },
    #[error("blob {blob} has no bootstrap in it")]
    NoBootstrap { blob: Digest },
    #[error("the bootstrap in blob {blob}: {source}")]
    Bootstrap { blob: Digest, source: ReadError },
    #[error(transparent)]
    Blob(#[from] BlobError),
}

/// The layer that the stream of `size` bytes holds which `read` gives ranges of; its blob has this id. `toc` is the digest that
/// its table of contents is known to have.
///
/// # Errors
///
/// When it cannot be read, or is not what it should be.
pub fn read_layer(
    id: Digest,
    size: u64,
    toc: Option<Digest>,
    read: impl Fn(Range<u64>) -> io::Result<Vec<u8>>,
) -> Result<Layer, StoredError> {
    let bootstrap = open(id, size, toc, &read)?;
    bootstrap.to_layer().map_err(|source| StoredError::Bootstrap { blob: id, source })
}

/// The blob whose stream of `size` bytes `read` gives ranges of, with all of its chunks; `None` if it has none. See
/// [`read_layer`].
///
/// # Errors
///
/// As there.
pub fn read_chunks(
    id: Digest,
    size: u64,
    toc: Option<Digest>,
    read: impl Fn(Range<u64>) -> io::Result<Vec<u8>>,
) -> Result<Option<Blob>, StoredError> {
    let mut bootstrap = open(id, size, toc, &read)?;
    let Some(at) = bootstrap.blobs().iter().position(|blob| blob.id == Some(id)) else { return Ok(None) };
    // The position is below the number of blobs, which the format bounds.
    let index = BlobIndex(at as u8);
    let meta = read_meta(&RangedStream { size, read }, &bootstrap.blobs()[at])?;
    bootstrap.set_chunk_info(index, meta).map_err(BlobError::from)?;
    let mut blobs =
        bootstrap.blobs_with_chunks().map_err(|source| StoredError::Bootstrap { blob: id, source })?;
    Ok(Some(blobs.swap_remove(at)))
}

fn open(
    id: Digest,
    size: u64,
    toc: Option<Digest>,
    read: &impl Fn(Range<u64>) -> io::Result<Vec<u8>>,
) -> Result<Bootstrap, StoredError> {
    let own = own_bootstrap(size, read).map_err(|source| StoredError::Io { blob: id, source })?;
    let own = own.map_err(|source| StoredError::Toc { blob: id, source })?;
    let own = own.ok_or(StoredError::NoBootstrap { blob: id })?;
    let found = own.toc.as_ref().map(|toc| toc.digest);
    if let Some(expected) = toc.filter(|expected| found != Some(*expected)) {
        let found = found.map_or_else(|| "missing".to_owned(), |found| found.to_string());
        return Err(StoredError::OtherToc { blob: id, found, expected });
    }
    let broken = |source| StoredError::Bootstrap { blob: id, source };
    let mut bootstrap = Bootstrap::from_bytes(own.bytes).map_err(broken)?;
    bootstrap.set_own_blob(id, Some(size), own.toc.as_ref());
    Ok(bootstrap)
}

/// One stream, by ranges.
struct RangedStream<R> {
    size: u64,
    read: R,
}

impl<R: Fn(Range<u64>) -> io::Result<Vec<u8>>> BlobSource for RangedStream<R> {
    fn size(&self, _: &Blob) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read(&self, _: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        (self.read)(range)
    }
}
