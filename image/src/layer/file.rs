//! A layer that stays on this machine, as a file that holds its blob stream, until it is known what it shares with others.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rafs::build::{BuildError, BuildOptions, build_layer};
use rafs::source::decompress::Decompressor;
use registry::digest::{Digest, Hasher};
use tokio::sync::mpsc;

use super::bridge::InputReader;
use crate::options::Recipe;
use crate::source::{BlobStream, SourceError};

/// Messages between the source and the builder.
const QUEUE: usize = 2;
/// The file is written in pieces of this size.
const BUFFER_BYTES: usize = 1 << 20;

/// Why a layer was not converted to a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It cannot be built.
    #[error("cannot convert {place}: {error}")]
    Build {
        /// The layer.
        place: String,
        /// Why.
        error: Box<BuildError>,
    },
    /// What it holds is not what its image's config says.
    #[error("{place} unpacks to {found}: its image's config says {expected}")]
    DiffId {
        /// The layer.
        place: String,
        /// The digest of its tar.
        found: Digest,
        /// The digest that the config says.
        expected: Digest,
    },
    /// The file cannot be written.
    #[error("cannot write {}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The thread that builds is gone.
    #[error("the conversion ended unexpectedly: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Converts the layer that `blob` gives, whose tar has the digest `diff_id`, and writes its blob stream to `path`. Returns when all
/// of it is on the disk.
///
/// # Errors
///
/// When it cannot be read, built or written, or is another one.
pub async fn convert_to_file(
    mut blob: BlobStream,
    diff_id: &Digest,
    recipe: &Arc<Recipe>,
    path: &Path,
) -> Result<(), FileError> {
    let place = blob.place().to_owned();
    let hasher = Hasher::like(diff_id).map_err(SourceError::from)?;
    let (sender, receiver) = mpsc::channel::<Bytes>(QUEUE);
    let (recipe, file) = (Arc::clone(recipe), path.to_owned());
    let building =
        tokio::task::spawn_blocking(move || build(InputReader::new(receiver), hasher, recipe.build(), &file));
    let fed = async move {
        loop {
            let Some(piece) = blob.next().await? else {
                // Here the content has been found to have the layer's digest.
                _ = sender.send(Bytes::new()).await;
                return Ok::<_, SourceError>(());
            };
            // Empty would be the end. Where nobody takes it any more, the builder has failed and says why.
            if !piece.is_empty() && sender.send(piece).await.is_err() {
                return Ok(());
            }
        }
    };
    let (fed, built) = tokio::join!(fed, building);
    // What the builder says of input that broke off follows from it.
    fed?;
    let found = built?.map_err(|error| match error {
        Failed::Build(error) => FileError::Build { place: place.clone(), error: Box::new(error) },
        Failed::Input(error) => SourceError::io(place.clone())(error).into(),
        Failed::File(error) => FileError::File { path: path.to_owned(), error },
    })?;
    if found != *diff_id {
        return Err(FileError::DiffId { place, found, expected: diff_id.clone() });
    }
    Ok(())
}

enum Failed {
    Build(BuildError),
    Input(io::Error),
    File(io::Error),
}

/// Builds the layer; returns the digest of its tar. Runs on a thread that may block.
fn build(input: InputReader, hasher: Hasher, options: &BuildOptions, path: &Path) -> Result<Digest, Failed> {
    let mut input = Hashing { inner: Decompressor::new(input), hasher };
    let file = File::create(path).map_err(Failed::File)?;
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
    build_layer(&mut input, &mut out, options).map_err(Failed::Build)?;
    out.flush().map_err(Failed::File)?;
    out.get_ref().sync_all().map_err(Failed::File)?;
    // A tar may end before its stream does.
    io::copy(&mut input, &mut io::sink()).map_err(Failed::Input)?;
    Ok(input.hasher.finish())
}

/// Hashes what is read.
struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(out)?;
        self.hasher.update(&out[..length]);
        Ok(length)
    }
}
