//! Where blobs are read from.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::decode::{Batch, DecodeError, decode};
use super::meta::{BlobMeta, MetaError};
use super::stream::{Toc, TocError};
use super::{Blob, BlobIndex, Chunk, ChunkIndex};
use crate::bootstrap::{Bootstrap, ReadError};
use crate::digest::Digest;
use crate::layout::blob_meta::MetaHeader;
use crate::layout::{flags, toc};
use crate::limits::Limits;
use crate::tree::{ChunkRef, Image};

/// The largest range that is read at once, in bytes: what a chunk-info array may have.
const READ_LIMIT: u64 = 1 << 30;

/// Random access to the blob streams of an image.
pub trait BlobSource {
    /// Size in bytes of the stream of `blob`.
    ///
    /// # Errors
    ///
    /// When the blob is not there.
    fn size(&self, blob: &Blob) -> io::Result<u64>;

    /// The bytes of a range of the stream.
    ///
    /// # Errors
    ///
    /// When they are not there.
    fn read(&self, blob: &Blob, range: Range<u64>) -> io::Result<Vec<u8>>;

    /// The bytes of a range of the stream for a reader that goes through all of it and asks for no byte twice: a source that
    /// otherwise reads ahead does not here.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn read_once(&self, blob: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.read(blob, range)
    }
}

/// A directory in which each blob is a file named by its id.
#[derive(Debug)]
pub struct BlobDirectory {
    path: PathBuf,
}

impl BlobDirectory {
    /// Uses the directory at `path`.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self { path: path.as_ref().to_owned() }
    }

    /// The file of a blob.
    ///
    /// # Errors
    ///
    /// When it cannot be opened; the message names it.
    pub fn open(&self, blob: &Blob) -> io::Result<File> {
        let id =
            blob.id.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the blob's id is not known"))?;
        let path = self.path.join(id.to_string());
        File::open(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }
}

impl BlobSource for BlobDirectory {
    fn size(&self, blob: &Blob) -> io::Result<u64> {
        Ok(self.open(blob)?.metadata()?.len())
    }

    fn read(&self, blob: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        let file = self.open(blob)?;
        let len = range.end.saturating_sub(range.start);
        // Before memory is taken for it: what a bootstrap claims need not be there.
        if len > READ_LIMIT || range.end > file.metadata()?.len() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the blob ends before what is to be read",
            ));
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    }
}

/// Why a blob, or a chunk of it, cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum BlobError {
    #[error("cannot read blob {blob}")]
    Io { blob: String, source: io::Error },
    #[error("blob {blob}")]
    Toc { blob: String, source: TocError },
    #[error("blob {blob}: cannot read its chunk information")]
    Meta { blob: String, source: MetaError },
    #[error("the image's chunk information has more than {limit} bytes together")]
    TooMuchChunkInfo { limit: u64 },
    #[error("blob {blob}: chunk {chunk}")]
    Chunk { blob: String, chunk: u32, source: DecodeError },
    #[error("blob {blob} has no chunk {chunk}, which a file refers to")]
    NoChunk { blob: String, chunk: u32 },
    #[error(transparent)]
    Bootstrap(#[from] ReadError),
}

/// The name of a blob for messages.
pub(crate) fn name(blob: &Blob) -> String {
    blob.id.map_or_else(|| "of unknown id".to_owned(), |id| id.to_string())
}

/// Reads the table of contents; `None` where the blob has none. Its digest is checked where the bootstrap has it.
///
/// # Errors
///
/// When it cannot be read, or is broken.
pub fn read_toc(source: &impl BlobSource, blob: &Blob) -> Result<Option<Toc>, BlobError> {
    if blob.features & flags::blob::HAS_TOC == 0 {
        return Ok(None);
    }
    let io = |source| BlobError::Io { blob: name(blob), source };
    let size = source.size(blob).map_err(io)?;
    let tail = source.read(blob, Toc::range(size)).map_err(io)?;
    let expected = blob.toc.map(|(digest, _)| digest);
    Toc::parse(&tail, size, expected).map(Some).map_err(|source| BlobError::Toc { blob: name(blob), source })
}

/// What the chunk information of an image may still take.
pub(crate) struct ChunkInfoBudget {
    limit: u64,
    left: u64,
}

impl ChunkInfoBudget {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limit: limits.chunk_info_bytes, left: limits.chunk_info_bytes }
    }

    fn take(&mut self, bytes: u64) -> Result<(), BlobError> {
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or(BlobError::TooMuchChunkInfo { limit: self.limit })?;
        Ok(())
    }

    /// For the chunk information of a blob, before it is read: as it is stored, as an array, and its digests.
    pub(crate) fn take_for(&mut self, blob: &Blob) -> Result<(), BlobError> {
        let Some(location) = &blob.meta else { return Ok(()) };
        self.take(location.compressed_size.saturating_add(location.uncompressed_size.saturating_mul(3)))
    }
}

/// Reads chunk information, with digests where the blob has them.
///
/// # Errors
///
/// When it cannot be read, or is broken.
pub fn read_meta(source: &impl BlobSource, blob: &Blob) -> Result<BlobMeta, BlobError> {
    let (parts, toc) = read_with_toc(source, blob)?;
    assemble(blob, parts, toc.as_ref())
}

/// Chunk information as it lies in a blob, unpacked. Whoever has it from elsewhere has to verify it: see [`meta_of`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MetaParts {
    /// The array's header.
    pub header: Vec<u8>,
    /// The array, uncompressed.
    pub array: Vec<u8>,
    /// The last bytes of the stream, in which the table of contents is, and the stream's size. Empty where the blob has none.
    pub tail: Vec<u8>,
    /// Size in bytes of the stream, if the blob has a table of contents.
    pub stream_size: u64,
    /// The chunks' digests, uncompressed. Empty where the table of contents names none.
    pub digests: Vec<u8>,
}

impl MetaParts {
    /// Whether the table of contents of this digest names all of them, each by its digest. Then they are the same whoever had
    /// them: header, array and digests cannot be others.
    pub fn are_named_by(&self, table: Digest) -> bool {
        let Ok(found) = Toc::parse(&self.tail, self.stream_size, Some(table)) else { return false };
        let is = |name: &str, content: &[u8]| found.part(name).map(|part| part.check(content).is_ok());
        is(toc::META, &self.array) == Some(true)
            && is(toc::META_HEADER, &self.header) == Some(true)
            && is(toc::DIGESTS, &self.digests).unwrap_or(self.digests.is_empty())
    }
}

/// Fetches and unpacks chunk information, for who verifies it elsewhere.
///
/// # Errors
///
/// When it cannot be read or unpacked.
pub fn read_meta_parts(source: &impl BlobSource, blob: &Blob) -> Result<MetaParts, BlobError> {
    read_with_toc(source, blob).map(|(parts, _)| parts)
}

/// The parts, their digests verified, with the table of contents.
fn read_with_toc(source: &impl BlobSource, blob: &Blob) -> Result<(MetaParts, Option<Toc>), BlobError> {
    let meta_error = |source| BlobError::Meta { blob: name(blob), source };
    let io = |source| BlobError::Io { blob: name(blob), source };
    let range = BlobMeta::stored_range(blob).map_err(meta_error)?;
    let bytes = source.read(blob, range).map_err(io)?;
    let (array, header) = BlobMeta::unpack(blob, &bytes).map_err(meta_error)?;
    let mut parts = MetaParts { header, array, tail: Vec::new(), stream_size: 0, digests: Vec::new() };
    if blob.features & flags::blob::HAS_TOC == 0 {
        return Ok((parts, None));
    }
    parts.stream_size = source.size(blob).map_err(io)?;
    parts.tail = source.read(blob, Toc::range(parts.stream_size)).map_err(io)?;
    let toc = toc_of(blob, &parts)?;
    if let Some(part) = toc.part(toc::DIGESTS) {
        // Before it is read: what the table says may be anything.
        let expected = BlobMeta::entries(&parts.header).map_err(meta_error)? * size_of::<Digest>() as u64;
        let stored_size = part.range.end - part.range.start;
        if part.uncompressed_size != expected || stored_size > expected || expected > digests_limit(blob) {
            let found = part.uncompressed_size.max(stored_size);
            return Err(meta_error(MetaError::Digests { found, expected }));
        }
        let stored = source.read(blob, part.range.clone()).map_err(io)?;
        // Whoever reads from several places has to know which one was wrong.
        let digests = part.decode(&stored).and_then(|digests| part.check(&digests).map(|()| digests));
        parts.digests = digests.map_err(|source| BlobError::Toc { blob: name(blob), source })?;
    }
    Ok((parts, Some(toc)))
}

/// The most bytes that the digests of a blob's chunks can have, by what its bootstrap says of the array: each has twice the
/// size of the smallest entry.
pub fn digests_limit(blob: &Blob) -> u64 {
    blob.meta.map_or(0, |meta| meta.uncompressed_size.saturating_mul(2))
}

/// The most bytes that all parts of a blob's chunk information can have, by what its bootstrap says of the array.
pub fn parts_limit(blob: &Blob) -> u64 {
    let array = blob.meta.map_or(0, |meta| meta.uncompressed_size);
    let others = (size_of::<MetaHeader>() + toc::SIZE_LIMIT) as u64;
    array.saturating_add(digests_limit(blob)).saturating_add(others)
}

/// Chunk information from its parts, whoever read them. Where the bootstrap has the digest of the table of contents, the chunks'
/// digests are verified by it.
///
/// # Errors
///
/// When they are broken, or not what they have to be.
pub fn meta_of(blob: &Blob, parts: MetaParts) -> Result<BlobMeta, BlobError> {
    let toc = match blob.features & flags::blob::HAS_TOC {
        0 => None,
        _ => Some(toc_of(blob, &parts)?),
    };
    if let Some(part) = toc.as_ref().and_then(|toc| toc.part(toc::DIGESTS)) {
        part.check(&parts.digests).map_err(|source| BlobError::Toc { blob: name(blob), source })?;
    }
    assemble(blob, parts, toc.as_ref())
}

/// Chunk information from parts whose digests are verified.
fn assemble(blob: &Blob, parts: MetaParts, toc: Option<&Toc>) -> Result<BlobMeta, BlobError> {
    let meta_error = |source| BlobError::Meta { blob: name(blob), source };
    let mut meta = BlobMeta::from_parts(blob, parts.array, &parts.header).map_err(meta_error)?;
    if toc.is_some_and(|toc| toc.part(toc::DIGESTS).is_some()) {
        meta.set_digests(parts.digests).map_err(meta_error)?;
    }
    Ok(meta)
}

fn toc_of(blob: &Blob, parts: &MetaParts) -> Result<Toc, BlobError> {
    let expected = blob.toc.map(|(digest, _)| digest);
    Toc::parse(&parts.tail, parts.stream_size, expected)
        .map_err(|source| BlobError::Toc { blob: name(blob), source })
}

/// Reads verified chunks of an image one after another; members of the same batch cost one decompression.
#[derive(Debug)]
pub struct ChunkReader<'a, S> {
    bootstrap: &'a Bootstrap,
    source: &'a S,
    contents: ChunkContents,
}

impl<'a, S: BlobSource> ChunkReader<'a, S> {
    /// Reads chunks of `bootstrap` from `source`. For blobs with batches, the bootstrap needs their chunk information
    /// ([`load_chunk_info`]).
    pub fn new(bootstrap: &'a Bootstrap, source: &'a S) -> Self {
        Self { bootstrap, source, contents: ChunkContents::default() }
    }

    /// The content of a chunk.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is not what its digest says.
    pub fn read(&mut self, index: BlobIndex, chunk_index: ChunkIndex) -> Result<Vec<u8>, BlobError> {
        let chunk = self.bootstrap.chunk(index, chunk_index)?;
        // The bootstrap has the chunk, so it has the blob.
        let blob = self.bootstrap.blobs().get(usize::from(index.0)).ok_or(ReadError::NoSuchBlob(index.0))?;
        self.contents.read_chunk(self.source, (index, blob), (chunk_index, &chunk))
    }
}

/// Reads verified chunks; members of the same batch cost one decompression.
#[derive(Debug, Default)]
pub(crate) struct ChunkContents {
    batch: Option<(BlobIndex, u64, Batch)>,
}

impl ChunkContents {
    /// The content of a chunk that a file of `image` has.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is not what its digest says.
    pub(crate) fn read(
        &mut self,
        image: &Image,
        source: &impl BlobSource,
        wanted: ChunkRef,
    ) -> Result<Vec<u8>, BlobError> {
        let blob = image.blobs.get(usize::from(wanted.blob.0)).ok_or(ReadError::NoSuchBlob(wanted.blob.0))?;
        let missing = || BlobError::NoChunk { blob: name(blob), chunk: wanted.chunk.0 };
        let chunk = blob.chunks.get(wanted.chunk.0 as usize).ok_or_else(missing)?;
        self.read_chunk(source, (wanted.blob, blob), (wanted.chunk, chunk))
    }

    fn read_chunk(
        &mut self,
        source: &impl BlobSource,
        (index, blob): (BlobIndex, &Blob),
        (chunk_index, chunk): (ChunkIndex, &Chunk),
    ) -> Result<Vec<u8>, BlobError> {
        let wrong = |source| BlobError::Chunk { blob: name(blob), chunk: chunk_index.0, source };
        let stored = chunk.compressed_offset..chunk.compressed_offset + u64::from(chunk.compressed_size);
        let read = || source.read(blob, stored.clone());
        let io = |source| BlobError::Io { blob: name(blob), source };
        if chunk.batch.is_none() {
            return decode(blob, chunk, &read().map_err(io)?).map_err(wrong);
        }
        let batch = match self.batch.take() {
            Some((of, at, batch)) if (of, at) == (index, stored.start) => batch,
            _ => Batch::decode(blob, chunk, &read().map_err(io)?).map_err(wrong)?,
        };
        let content = batch.member(blob, chunk).map(<[u8]>::to_vec).map_err(wrong);
        self.batch = Some((index, stored.start, batch));
        content
    }
}

/// Gives the bootstrap the chunk information of blobs with batches from files in `folder`, `ID.blob.meta`, as far as there
/// are any: they save reading it from the blobs. They have no digests, so the bootstrap needs a chunk table.
///
/// # Errors
///
/// When a file is there and cannot be read, or does not fit its blob.
pub fn load_chunk_info_files(bootstrap: &mut Bootstrap, folder: &Path) -> Result<(), BlobError> {
    if !bootstrap.has_chunk_table() {
        return Ok(());
    }
    let mut left = ChunkInfoBudget::new(Limits::DEFAULT);
    for (index, blob) in bootstrap.blobs().to_vec().iter().enumerate() {
        if blob.meta.is_none() || blob.features & flags::blob::BATCH == 0 {
            continue;
        }
        let io = |source| BlobError::Io { blob: name(blob), source };
        let path = folder.join(format!("{}.blob.meta", name(blob)));
        // Looked at before it is opened: a layer may have a named pipe or a device there.
        let size = match path.symlink_metadata() {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => continue,
        };
        let file = File::open(&path).map_err(io)?;
        left.take(size)?;
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, 0).map_err(io)?;
        let meta = BlobMeta::from_file(blob, bytes)
            .map_err(|source| BlobError::Meta { blob: name(blob), source })?;
        bootstrap.set_chunk_info(BlobIndex(index as u8), meta)?;
    }
    Ok(())
}

/// Gives the bootstrap the chunk information that it lacks: of blobs with batches, and of all blobs where there is no
/// chunk table.
///
/// # Errors
///
/// When a blob cannot be read.
pub fn load_chunk_info(bootstrap: &mut Bootstrap, source: &impl BlobSource) -> Result<(), BlobError> {
    load_chunk_info_within(bootstrap, source, Limits::DEFAULT)
}

/// [`load_chunk_info`] with other limits.
///
/// # Errors
///
/// As there.
pub fn load_chunk_info_within(
    bootstrap: &mut Bootstrap,
    source: &impl BlobSource,
    limits: Limits,
) -> Result<(), BlobError> {
    for (index, blob) in lacking_chunk_info(bootstrap, limits)? {
        bootstrap.set_chunk_info(index, read_meta(source, &blob)?)?;
    }
    Ok(())
}

/// The blobs whose chunk information the bootstrap lacks, for who reads it elsewhere ([`read_meta`]).
///
/// # Errors
///
/// When it would be too much, all of them together.
pub fn lacking_chunk_info(
    bootstrap: &Bootstrap,
    limits: Limits,
) -> Result<Vec<(BlobIndex, Blob)>, BlobError> {
    let all = !bootstrap.has_chunk_table();
    let mut left = ChunkInfoBudget::new(limits);
    let mut lacking = Vec::new();
    for (index, blob) in bootstrap.blobs().iter().enumerate() {
        let index = BlobIndex(index as u8);
        let known = bootstrap.has_chunk_info(index);
        if known || blob.meta.is_none() || (!all && blob.features & flags::blob::BATCH == 0) {
            continue;
        }
        left.take_for(blob)?;
        lacking.push((index, blob.clone()));
    }
    Ok(lacking)
}
