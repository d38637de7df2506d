//! One platform's image: its layers merged into a bootstrap, and bootstrap, config and manifest stored.

use std::sync::Arc;

use bytes::Bytes;
use rafs::bootstrap::WriteOptions;
use rafs::build::BuildOptions;
use registry::client::Error;
use registry::digest::Digest;
use tokio::sync::mpsc;

use super::bootstrap::{self, BootstrapError, Packed};
use super::index::Stored;
use super::manifest::{Described, Source};
use super::{DocumentError, config};
use crate::convert::{ConvertedLayer, Destination, OutputWriter};

/// Pieces of 256 KiB between the writer and the upload.
const QUEUE: usize = 4;

/// What can be chosen about an image.
#[derive(Clone, Copy, Debug)]
pub struct AssembleOptions {
    /// OCI's media types, or Docker's.
    pub oci_media_types: bool,
}

/// Why an image was not put together.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// A document of the source is not what it should be.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The bootstrap cannot be made.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// Something cannot be stored.
    #[error("cannot push {what}: {error}")]
    Push {
        /// What it is.
        what: &'static str,
        /// Why.
        error: Error,
    },
    /// The thread that writes is gone.
    #[error("writing the bootstrap ended unexpectedly: {0}")]
    Panicked(#[from] tokio::task::JoinError),
    /// Layers are missing or too many.
    #[error("the manifest has {expected} layers, {found} were converted")]
    Layers {
        /// Layers of the manifest.
        expected: usize,
        /// Layers that came.
        found: usize,
    },
}

/// An image as stored.
#[derive(Clone, Debug)]
pub struct Assembled {
    /// Media type of the manifest.
    pub media_type: String,
    /// The manifest.
    pub manifest: Bytes,
    /// Its digest.
    pub digest: Digest,
    /// Digest of the config.
    pub config: Digest,
}

/// Makes the image of `layers`, which are those of the source manifest in its order, and stores everything at
/// `destination`: bootstrap, config, and the manifest under its digest.
pub async fn assemble(
    source_manifest: &[u8],
    source_config: &[u8],
    layers: Vec<Arc<ConvertedLayer>>,
    build: &BuildOptions,
    options: AssembleOptions,
    destination: &Destination,
) -> Result<Assembled, AssembleError> {
    let source = Source::parse(source_manifest)?;
    if source.layers.len() != layers.len() {
        return Err(AssembleError::Layers { expected: source.layers.len(), found: layers.len() });
    }
    let blobs: Vec<Described> =
        layers.iter().map(|layer| Described { digest: layer.digest.clone(), size: layer.size }).collect();
    let (packed, size) = push_bootstrap(layers, build, destination).await?;
    let digests: Vec<&Digest> = blobs.iter().map(|blob| &blob.digest).collect();
    let config = config::convert(source_config, &digests, &packed.diff_id)?;
    let push = |what| move |error| AssembleError::Push { what, error };
    let config_digest = destination.put_blob(config.clone()).await.map_err(push("the image config"))?;
    let described = Described { digest: config_digest.clone(), size: config.len() as u64 };
    let bootstrap = Described { digest: packed.digest, size };
    let (manifest, media_type) = source.convert(&described, &blobs, &bootstrap, options.oci_media_types);
    let digest =
        destination.put_manifest(media_type, manifest.clone()).await.map_err(push("the manifest"))?;
    Ok(Assembled { media_type: media_type.to_owned(), manifest, digest, config: config_digest })
}

impl From<Assembled> for Stored {
    fn from(image: Assembled) -> Self {
        Self { media_type: image.media_type, content: image.manifest, digest: image.digest }
    }
}

/// Writes the bootstrap layer on a thread of its own and stores it while it is written.
async fn push_bootstrap(
    layers: Vec<Arc<ConvertedLayer>>,
    build: &BuildOptions,
    destination: &Destination,
) -> Result<(Packed, u64), AssembleError> {
    let push = |error| AssembleError::Push { what: "the bootstrap", error };
    let options = WriteOptions {
        chunk_size: build.chunk_size,
        compressor: build.compressor,
        digester: build.digester,
        ..WriteOptions::default()
    };
    let (sender, mut pieces) = mpsc::channel::<Bytes>(QUEUE);
    let packing =
        tokio::task::spawn_blocking(move || bootstrap::pack(&layers, &options, OutputWriter::new(sender)));
    let upload = async move {
        // Begun when there is something: merging takes its time, and uploads may expire.
        let first = pieces.recv().await.unwrap_or_default();
        let mut writer = destination.begin().await?;
        writer.write(first).await?;
        while let Some(piece) = pieces.recv().await {
            writer.write(piece).await?;
        }
        Ok::<_, Error>(writer)
    };
    let (uploaded, packed) = tokio::join!(upload, packing);
    let (writer, packed) = match (uploaded, packed?) {
        (Ok(writer), Ok(packed)) => (writer, packed),
        (Err(error), _) => return Err(push(error)),
        (Ok(writer), Err(error)) => {
            writer.cancel().await;
            return Err(error.into());
        }
    };
    let size = writer.finish(&packed.digest).await.map_err(push)?;
    Ok((packed, size))
}
