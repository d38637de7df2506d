//! Writing a blob stream.

use std::io::{self, Write};

use sha2::{Digest as _, Sha256};
use zerocopy::{FromZeros, IntoBytes};

use crate::blob::meta::{self, EncodeError};
use crate::blob::tar_header;
use crate::bootstrap::{self, WriteError, WriteOptions};
use crate::digest::Digest;
use crate::layout::flags::blob as features;
use crate::layout::toc::{self, TocEntry};
use crate::tree::Layer;

/// zstd level of the layer's own bootstrap in the stream.
const BOOTSTRAP_LEVEL: i32 = 3;

/// Why a blob stream cannot be finished.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// The output failed.
    #[error("cannot write the blob")]
    Io(#[from] io::Error),
    /// A chunk does not fit the format.
    #[error("cannot write the blob's chunk information")]
    ChunkInfo(#[from] EncodeError),
    /// The layer does not fit the format.
    #[error("cannot write the layer's bootstrap")]
    Bootstrap(#[from] WriteError),
    /// The layer has no blob of its own.
    #[error("a layer's first blob must be its own; this one has none")]
    NoBlob,
}

/// Writes a blob stream strictly in order: chunk data through [`Write`], then the rest by [`finish`](Self::finish).
#[derive(Debug)]
pub struct BlobWriter<W> {
    out: W,
    hash: Sha256,
    position: u64,
}

impl<W: Write> Write for BlobWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<W: Write> BlobWriter<W> {
    /// Starts a stream.
    pub fn new(out: W) -> Self {
        Self { out, hash: Sha256::new(), position: 0 }
    }

    /// Bytes written so far: where the next chunk's stored bytes will start.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Ends the stream of a layer whose chunk data has been written: adds chunk information, digests, the layer's own
    /// bootstrap and the table of contents. Fills in what is known only now of `layer.blobs[0]`, the layer's own blob
    /// (features, sizes, locations, id); its chunks, chunk size, compressor, digester and uncompressed size are to be
    /// there. Returns the output.
    ///
    /// # Errors
    ///
    /// When the output fails, or the layer does not fit the format.
    pub fn finish(mut self, layer: &mut Layer, options: &WriteOptions) -> Result<W, FinishError> {
        let mut entries = Vec::new();
        let blob = layer.blobs.first_mut().ok_or(FinishError::NoBlob)?;
        let batch = blob.chunks.iter().any(|chunk| chunk.batch.is_some());
        let mut bits =
            features::CAP_TAR_TOC | features::HAS_TAR_HEADER | features::HAS_TOC | features::ALIGNED;
        if !blob.chunks.is_empty() {
            bits |= features::INLINED_CHUNK_DIGEST;
        }
        if batch {
            bits |= features::BATCH | features::CHUNK_INFO_V2;
        }
        // Compressed chunks of 16 MiB less a byte do not fit; what builds them stores them raw before that.
        blob.features = bits;
        blob.compressed_size = self.position;
        (blob.id, blob.toc, blob.meta, blob.stored_size) = (None, None, None, 0);

        if !blob.chunks.is_empty() {
            let digest = Digest(self.hash.clone().finalize().into());
            let sizes = (blob.compressed_size, blob.uncompressed_size);
            self.write_all(&tar_header::encode(toc::BLOB, blob.compressed_size))?;
            entries.push(entry(toc::BLOB, toc::FLAG_NONE, digest, 0, sizes));
            let blob = &mut layer.blobs[0];
            self.write_chunk_info(blob, &mut entries)?;
            // Upstream's bootstrap in the stream says how far the stream has come.
            blob.stored_size = self.position;
        }
        self.write_bootstrap(layer, options, &mut entries)?;
        layer.blobs[0].toc = Some(self.write_toc(&entries)?);
        layer.blobs[0].stored_size = self.position;
        layer.blobs[0].id = Some(Digest(self.hash.finalize().into()));
        self.out.flush()?;
        Ok(self.out)
    }

    fn write_chunk_info(
        &mut self,
        blob: &mut crate::blob::Blob,
        entries: &mut Vec<TocEntry>,
    ) -> Result<(), FinishError> {
        let encoded = meta::encode(blob, self.position)?;
        let sizes = (encoded.stored.len() as u64, encoded.array.len() as u64);
        let flag = if encoded.header.compressor.get() == 0 { toc::FLAG_NONE } else { toc::FLAG_ZSTD };
        let offset = self.position;
        self.write_all(&encoded.stored)?;
        self.write_all(encoded.header.as_bytes())?;
        let header_size = encoded.header.as_bytes().len() as u64;
        // The tar header comes behind what it heads: a stream cannot go back to write a size. Readers begin at the end.
        self.write_all(&tar_header::encode(toc::META, sizes.0 + header_size))?;
        entries.push(entry(toc::META, flag, sha256(&encoded.array), offset, sizes));
        let digest = sha256(encoded.header.as_bytes());
        entries.push(entry(
            toc::META_HEADER,
            toc::FLAG_NONE,
            digest,
            offset + sizes.0,
            (header_size, header_size),
        ));
        blob.meta = Some(encoded.location);

        let digests: Vec<u8> = blob.chunks.iter().flat_map(|chunk| chunk.digest.0).collect();
        let (offset, size) = (self.position, digests.len() as u64);
        self.write_all(&digests)?;
        self.write_all(&tar_header::encode(toc::DIGESTS, size))?;
        entries.push(entry(toc::DIGESTS, toc::FLAG_NONE, sha256(&digests), offset, (size, size)));
        Ok(())
    }

    fn write_bootstrap(
        &mut self,
        layer: &Layer,
        options: &WriteOptions,
        entries: &mut Vec<TocEntry>,
    ) -> Result<(), FinishError> {
        // Streamed: a layer of many files would need its bootstrap twice in memory otherwise.
        let offset = self.position;
        let mut stored = zstd::Encoder::new(&mut *self, BOOTSTRAP_LEVEL)?;
        let mut plain = BlobWriter::new(&mut stored);
        bootstrap::write_layer(layer, options, &mut plain)?;
        let (digest, size) = (Digest(plain.hash.finalize().into()), plain.position);
        stored.finish()?;
        let sizes = (self.position - offset, size);
        self.write_all(&tar_header::encode(toc::BOOTSTRAP, sizes.0))?;
        entries.push(entry(toc::BOOTSTRAP, toc::FLAG_ZSTD, digest, offset, sizes));
        Ok(())
    }

    /// Writes the table of contents; returns digest and size of it with its tar header.
    fn write_toc(&mut self, entries: &[TocEntry]) -> io::Result<(Digest, u32)> {
        let mut bytes = entries.as_bytes().to_vec();
        bytes.extend_from_slice(&tar_header::encode(toc::TOC, bytes.len() as u64));
        self.write_all(&bytes)?;
        Ok((sha256(&bytes), bytes.len() as u32))
    }
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// An entry of the table of contents; `sizes` are stored and uncompressed bytes.
fn entry(name: &str, flags: u32, digest: Digest, offset: u64, sizes: (u64, u64)) -> TocEntry {
    let mut entry = TocEntry::new_zeroed();
    entry.flags.set(flags);
    entry.name[..name.len()].copy_from_slice(name.as_bytes());
    entry.uncompressed_digest = digest.0;
    entry.compressed_offset.set(offset);
    entry.compressed_size.set(sizes.0);
    entry.uncompressed_size.set(sizes.1);
    entry
}
