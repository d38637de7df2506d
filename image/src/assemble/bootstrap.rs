//! The bootstrap layer: a gzip tar with `image/image.boot`, which is all that a node fetches before it starts.

use std::io::{self, Write};
use std::sync::Arc;

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use rafs::blob::meta::{EncodeError, encode};
use rafs::bootstrap::WriteError;
use rafs::merge::MergeError;
use registry::digest::{Digest, Hasher};

use crate::layer::ConvertedLayer;
use crate::options::Recipe;

const DIRECTORY: &str = "image/";
/// The bootstrap, in that directory.
const FILE: &str = "image.boot";

/// Why there is no bootstrap.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The layers do not go together.
    #[error("cannot merge the layers: {0}")]
    Merge(#[from] MergeError),
    /// The image cannot be written as RAFS v6.
    #[error("cannot write the bootstrap: {}", crate::describe(.0))]
    Write(#[from] WriteError),
    /// Chunk information cannot be written.
    #[error("cannot write the chunk information of blob {blob}: {error}")]
    ChunkInfo {
        /// The blob's hexadecimal digest.
        blob: String,
        /// Why.
        error: EncodeError,
    },
    /// The tar cannot be written.
    #[error("cannot write the bootstrap layer: {0}")]
    Tar(#[from] io::Error),
}

/// A bootstrap layer as written.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    /// SHA-256 of the uncompressed tar.
    pub(crate) diff_id: Digest,
    /// SHA-256 of the gzip.
    pub(crate) digest: Digest,
    /// The blobs that the image uses.
    pub(crate) blobs: Vec<Digest>,
}

/// A bootstrap as made.
pub(super) struct MadeBootstrap {
    /// The bootstrap, and what belongs next to it: names and contents.
    pub(super) files: Vec<(String, Vec<u8>)>,
    /// The blobs that the image uses.
    pub(super) blobs: Vec<Digest>,
}

/// Merges `layers` and makes their bootstrap, with what else belongs next to it.
pub(super) fn build(
    layers: &[Arc<ConvertedLayer>],
    recipe: &Recipe,
) -> Result<MadeBootstrap, BootstrapError> {
    let layers = layers.iter().map(|layer| layer.layer.clone()).collect();
    let image = rafs::merge::merge(layers)?;
    let mut boot = Vec::new();
    rafs::bootstrap::write(&image, &recipe.write_options(&image.tree), &mut boot)?;
    let mut files = vec![(FILE.to_owned(), boot)];
    let mut blobs = Vec::with_capacity(image.blobs.len());
    for blob in image.blobs {
        // Merging refuses blobs without.
        let Some(id) = blob.id else { continue };
        let digest =
            format!("sha256:{id}").parse().expect("64 hexadecimal digits behind sha256: are a digest");
        blobs.push(digest);
        if let Some(location) = blob.meta.filter(|_| recipe.options().inline_chunk_info) {
            let encoded = encode(&blob, location.offset)
                .map_err(|error| BootstrapError::ChunkInfo { blob: id.to_string(), error })?;
            files.push((format!("{id}.blob.meta"), encoded.to_file()));
        }
    }
    Ok(MadeBootstrap { files, blobs })
}

/// Merges `layers` and writes their bootstrap layer to `out`. The same layers give the same bytes.
pub(crate) fn pack(
    layers: &[Arc<ConvertedLayer>],
    recipe: &Recipe,
    out: impl Write,
) -> Result<Packed, BootstrapError> {
    let MadeBootstrap { files, blobs } = build(layers, recipe)?;
    Ok(pack_files(&files, blobs, out)?)
}

fn pack_files(files: &[(String, Vec<u8>)], blobs: Vec<Digest>, out: impl Write) -> io::Result<Packed> {
    // A time or name in the header would make two builds of the same image differ.
    let gzip: GzEncoder<_> = GzBuilder::new().mtime(0).write(Hashing::new(out), Compression::default());
    let mut tar = tar::Builder::new(Hashing::new(gzip));
    let mut directory = header(tar::EntryType::Directory, 0o755, 0);
    tar.append_data(&mut directory, DIRECTORY, io::empty())?;
    for (name, content) in files {
        let mut file = header(tar::EntryType::Regular, 0o444, content.len() as u64);
        tar.append_data(&mut file, format!("{DIRECTORY}{name}"), content.as_slice())?;
    }
    let plain = tar.into_inner()?;
    let mut compressed = plain.inner.finish()?;
    compressed.flush()?;
    Ok(Packed { diff_id: plain.hasher.finish(), digest: compressed.hasher.finish(), blobs })
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Hashes what passes.
struct Hashing<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Hasher::sha256() }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(data)?;
        self.hasher.update(&data[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn files() -> Vec<(String, Vec<u8>)> {
        vec![(FILE.to_owned(), b"metadata".to_vec())]
    }

    #[test]
    fn the_layer_is_a_tar_of_directory_and_bootstrap_with_both_digests() {
        let mut layer = Vec::new();
        let packed = pack_files(&files(), Vec::new(), &mut layer).unwrap();
        assert_eq!(packed.digest, registry::digest::sha256(&layer));
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(layer.as_slice()).read_to_end(&mut plain).unwrap();
        assert_eq!(packed.diff_id, registry::digest::sha256(&plain));
        let mut archive = tar::Archive::new(plain.as_slice());
        let entries: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut content = String::new();
                entry.read_to_string(&mut content).unwrap();
                let path = entry.path().unwrap().display().to_string();
                (path, entry.header().mode().unwrap(), content)
            })
            .collect();
        let expected = [("image/", 0o755, ""), ("image/image.boot", 0o444, "metadata")];
        let expected = expected.map(|(path, mode, content)| (path.to_owned(), mode, content.to_owned()));
        assert_eq!(entries, expected);
    }

    #[test]
    fn the_same_bootstrap_gives_the_same_layer() {
        let mut layers = [Vec::new(), Vec::new()];
        for layer in &mut layers {
            pack_files(&files(), Vec::new(), layer).unwrap();
        }
        assert_eq!(layers[0], layers[1]);
    }
}
