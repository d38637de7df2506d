//! A converted layer as a file: what it takes to put an image together again, and to find out whether it is whole.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic and version: `NCLAYER1` |
//! | 4 | size of the header, little-endian |
//! | | the header: JSON ([`Header`]), with the sizes of what follows |
//! | | the layer's bootstrap |
//! | | its blob's chunk information, as in a `blob.meta` file |
//! | | the digests of the blob's chunks |
//! | | paths of the directories that the layer has no entry for, each with a NUL behind it |
//! | 64 | SHA-256 of all of the above, in hexadecimal digits |
//!
//! A bootstrap describes only those chunks that files refer to, and does not say where in a batch a chunk lies: so the
//! chunk information.

use rafs::blob::meta::{BlobMeta, EncodeError, MetaError, encode as encode_meta};
use rafs::blob::{Blob, BlobIndex};
use rafs::bootstrap::{Bootstrap, ReadError, WriteError, WriteOptions, write_layer};
use registry::digest::{Digest, sha256};
use serde::{Deserialize, Serialize};

use crate::layer::conversion::ConvertedLayer;
use crate::layer::implied::{implied, set_implied};
use crate::layer::key::Key;
use crate::options::Recipe;

const MAGIC: &[u8; 8] = b"NCLAYER1";
const LENGTH_BYTES: usize = 4;
const CHECKSUM_BYTES: usize = 64;

/// What a file says of its layer.
#[derive(Debug, Deserialize, Serialize)]
struct Header {
    source: Digest,
    diff_id: Option<Digest>,
    fingerprint: String,
    /// The repository that the layer is known for, if it is that alone.
    within: Option<String>,
    blob: Digest,
    size: u64,
    toc: Option<Digest>,
    bootstrap_bytes: u64,
    chunk_info_bytes: u64,
    digests_bytes: u64,
    implied_bytes: u64,
}

impl Header {
    /// Whether it is that of the layer of this key.
    fn is_of(&self, key: &Key) -> bool {
        let within = key.repository().map(ToString::to_string);
        self.fingerprint == key.fingerprint().as_str()
            && self.within == within
            && (self.source == *key.source() || self.diff_id.as_ref() == Some(key.source()))
    }
}

/// Why a layer is not written to a file.
#[derive(Debug, thiserror::Error)]
pub(super) enum EncodeEntryError {
    #[error("it has no source")]
    NoSource,
    #[error("its bootstrap: {}", crate::describe(.0))]
    Bootstrap(#[from] WriteError),
    #[error("its chunk information: {0}")]
    ChunkInfo(#[from] EncodeError),
    #[error("its header: {0}")]
    Header(#[from] serde_json::Error),
    #[error("its header is too large")]
    Size,
}

/// Why a file is no layer.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeEntryError {
    #[error("expected {0}")]
    Broken(&'static str),
    #[error("its checksum is not that of its content")]
    Checksum,
    #[error("it is of another layer or of other options")]
    Other,
    #[error("its header: {0}")]
    Header(#[from] serde_json::Error),
    #[error("its bootstrap: {}", crate::describe(.0))]
    Bootstrap(#[from] ReadError),
    #[error("its chunk information: {}", crate::describe(.0))]
    ChunkInfo(#[from] MetaError),
}

/// The file of a layer, which has this key.
pub(super) fn encode(layer: &ConvertedLayer, key: &Key) -> Result<Vec<u8>, EncodeEntryError> {
    let mut bootstrap = Vec::new();
    write_layer(&layer.layer, &write_options(&layer.layer.blobs), &mut bootstrap)?;
    let (mut chunk_info, mut digests) = (Vec::new(), Vec::new());
    if let Some(blob) = layer.layer.blobs.first().filter(|blob| !blob.chunks.is_empty())
        && let Some(location) = &blob.meta
    {
        chunk_info = encode_meta(blob, location.offset)?.to_file();
        digests = blob.chunks.iter().flat_map(|chunk| chunk.digest.0).collect();
    }
    let implied: Vec<u8> =
        implied(&layer.layer.tree).into_iter().flat_map(|path| [path, vec![0]].concat()).collect();
    let header = Header {
        source: layer.source.clone().ok_or(EncodeEntryError::NoSource)?,
        diff_id: layer.diff_id.clone(),
        fingerprint: key.fingerprint().as_str().to_owned(),
        within: key.repository().map(ToString::to_string),
        blob: layer.digest.clone(),
        size: layer.size,
        toc: layer.toc.clone(),
        bootstrap_bytes: bootstrap.len() as u64,
        chunk_info_bytes: chunk_info.len() as u64,
        digests_bytes: digests.len() as u64,
        implied_bytes: implied.len() as u64,
    };
    let header = serde_json::to_vec(&header)?;
    let length = u32::try_from(header.len()).map_err(|_| EncodeEntryError::Size)?.to_le_bytes();
    let mut file = [MAGIC, &length[..], &header, &bootstrap, &chunk_info, &digests, &implied].concat();
    let checksum = sha256(&file);
    file.extend_from_slice(checksum.digest().as_bytes());
    Ok(file)
}

/// The layer of a file, which has to be that of `key`, made by `recipe`.
pub(super) fn decode(file: &[u8], key: &Key, recipe: &Recipe) -> Result<ConvertedLayer, DecodeEntryError> {
    let (content, expected) =
        file.split_last_chunk::<CHECKSUM_BYTES>().ok_or(DecodeEntryError::Broken("a checksum"))?;
    let rest = content.strip_prefix(MAGIC).ok_or(DecodeEntryError::Broken("NCLAYER1"))?;
    // Before anything is read out of it: a power cut or a bad disk leaves files that parse, and are of another layer.
    if sha256(content).digest().as_bytes() != expected {
        return Err(DecodeEntryError::Checksum);
    }
    let mut parts = Parts(rest);
    let length = parts.take(LENGTH_BYTES as u64)?.try_into().map(u32::from_le_bytes);
    let length = length.map_err(|_| DecodeEntryError::Broken("a header's size"))?;
    let header: Header = serde_json::from_slice(parts.take(length.into())?)?;
    if !header.is_of(key) {
        return Err(DecodeEntryError::Other);
    }
    let mut bootstrap = Bootstrap::from_bytes(parts.take(header.bootstrap_bytes)?.to_vec())?;
    let chunk_info = parts.take(header.chunk_info_bytes)?;
    let digests = parts.take(header.digests_bytes)?;
    let implied = parts.take(header.implied_bytes)?;
    let blob = header.blob.digest().parse().map_err(|_| DecodeEntryError::Broken("a blob's SHA-256"))?;
    bootstrap.set_own_blob(blob, Some(header.size), None);
    if !chunk_info.is_empty() {
        let blob = bootstrap.blobs().first().ok_or(DecodeEntryError::Broken("a blob"))?;
        let mut meta = BlobMeta::from_file(blob, chunk_info.to_vec())?;
        meta.set_digests(digests.to_vec())?;
        bootstrap.set_chunk_info(BlobIndex(0), meta)?;
    }
    let mut layer = bootstrap.to_layer()?;
    let paths: Vec<&[u8]> =
        implied.strip_suffix(&[0]).map(|paths| paths.split(|&byte| byte == 0).collect()).unwrap_or_default();
    if !set_implied(&mut layer.tree, &paths) {
        return Err(DecodeEntryError::Broken("directories that the layer has"));
    }
    complete(&mut layer.blobs, recipe);
    let Header { source, diff_id, blob, size, toc, .. } = header;
    Ok(ConvertedLayer { layer, digest: blob, size, source: Some(source), diff_id, toc })
}

/// Adds what a bootstrap does not say of its blobs: at which level the layer's own is compressed, and what else those of the
/// chunk dictionary hold.
pub(in crate::layer) fn complete(blobs: &mut [Blob], recipe: &Recipe) {
    let compressor = recipe.build().compressor;
    let dictionary = recipe.build().dictionary.as_ref().map_or(&[][..], |dictionary| dictionary.blobs());
    for blob in blobs {
        match dictionary.iter().find(|known| known.id == blob.id) {
            Some(known) => *blob = known.clone(),
            None if blob.compressor.word() == compressor.word() => blob.compressor = compressor,
            None => {}
        }
    }
}

fn write_options(blobs: &[Blob]) -> WriteOptions {
    let default = WriteOptions::default();
    match blobs.first() {
        Some(blob) => WriteOptions {
            chunk_size: blob.chunk_size,
            compressor: blob.compressor,
            digester: blob.digester,
            ..default
        },
        None => default,
    }
}

/// What is left of a file.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn take(&mut self, size: u64) -> Result<&'a [u8], DecodeEntryError> {
        let size = usize::try_from(size).ok();
        let split = size.and_then(|size| self.0.split_at_checked(size));
        let (part, rest) = split.ok_or(DecodeEntryError::Broken("as much as the header says"))?;
        self.0 = rest;
        Ok(part)
    }
}
