//! One platform's image: its layers merged into a bootstrap, and bootstrap, config and manifest stored.
//!
//! - `bootstrap`: the bootstrap layer, a gzip tar.
//! - `merge`: nydus images next to the plain ones that a name has.
//! - `send`: it on its way, unless it is there already.

mod bootstrap;
mod merge;
mod send;

pub use self::bootstrap::BootstrapError;
pub use self::merge::{MergeError, MergedIndex, NydusImage, merge};

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use registry::digest::Digest;
use tokio::sync::mpsc;

use self::bootstrap::Packed;
use self::send::{Held, Sent};
use crate::destination::{CopyError, Destination, Staging, StoreError};
use crate::document::{BlobLayer, Described, DocumentError, Manifest, MediaTypes, Stored, convert_config};
use crate::layer::{ConvertedLayer, DictionaryBlobs, OutputWriter, announcement};
use crate::options::Recipe;

/// Pieces of 256 KiB between the writer and the upload.
const QUEUE: usize = 4;

/// What the manifest of an image is like.
#[derive(Clone, Debug)]
pub struct Form {
    /// The media types of the manifest and what it names.
    pub media_types: MediaTypes,
    /// Annotations of the manifest.
    pub annotations: Vec<(&'static str, String)>,
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
    #[error("cannot store {what}: {error}")]
    Push {
        /// What it is.
        what: &'static str,
        /// Why.
        error: StoreError,
    },
    /// A blob of the chunk dictionary cannot be copied.
    #[error(transparent)]
    Dictionary(#[from] CopyError),
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
/// `destination`: bootstrap, config, and the manifest under its digest. Blobs that it uses of a chunk dictionary are named
/// behind those of the layers, and are put there as well.
pub async fn assemble(
    source_manifest: &[u8],
    source_config: &[u8],
    layers: Vec<Arc<ConvertedLayer>>,
    recipe: &Arc<Recipe>,
    form: &Form,
    destination: &dyn Destination,
) -> Result<Assembled, AssembleError> {
    let source = Manifest::parse(source_manifest)?;
    if source.layers.len() != layers.len() {
        return Err(AssembleError::Layers { expected: source.layers.len(), found: layers.len() });
    }
    let mut blobs: Vec<BlobLayer> = layers.iter().map(|layer| blob_layer(layer, recipe)).collect();
    let (packed, size) = push_bootstrap(layers, recipe, destination).await?;
    for digest in outside(&packed.blobs, blobs.iter().map(|blob| &blob.described.digest)) {
        let size = dictionary(recipe).provide(&digest, destination).await?;
        blobs.push(BlobLayer { described: Described { digest, size }, annotations: Vec::new() });
    }
    store(
        &source,
        source_config,
        &blobs,
        Described { digest: packed.digest, size },
        &packed.diff_id,
        form,
        destination,
    )
    .await
}

/// Makes the image of `layers`, whose blobs are at `destination` already and have the sizes that `sizes` says. The source's
/// documents say all else; they name no layers.
pub(crate) async fn assemble_merged(
    source_manifest: &[u8],
    source_config: &[u8],
    layers: Vec<Arc<ConvertedLayer>>,
    sizes: &HashMap<Digest, u64>,
    recipe: &Arc<Recipe>,
    form: &Form,
    destination: &dyn Destination,
) -> Result<Assembled, AssembleError> {
    let source = Manifest::parse(source_manifest)?;
    let (packed, size) = push_bootstrap(layers, recipe, destination).await?;
    let mut blobs = Vec::with_capacity(packed.blobs.len());
    for digest in &packed.blobs {
        let size = *sizes.get(digest).ok_or_else(|| CopyError::Missing { digest: digest.clone() })?;
        blobs.push(BlobLayer {
            described: Described { digest: digest.clone(), size },
            annotations: Vec::new(),
        });
    }
    let bootstrap = Described { digest: packed.digest, size };
    store(&source, source_config, &blobs, bootstrap, &packed.diff_id, form, destination).await
}

/// Stores config and manifest.
async fn store(
    source: &Manifest,
    source_config: &[u8],
    blobs: &[BlobLayer],
    bootstrap: Described,
    diff_id: &Digest,
    form: &Form,
    destination: &dyn Destination,
) -> Result<Assembled, AssembleError> {
    let digests: Vec<&Digest> = blobs.iter().map(|blob| &blob.described.digest).collect();
    let config = convert_config(source_config, &digests, diff_id)?;
    let push = |what| move |error| AssembleError::Push { what, error };
    let config_digest = destination.put_blob(config.clone()).await.map_err(push("the image config"))?;
    let described = Described { digest: config_digest.clone(), size: config.len() as u64 };
    let (manifest, media_type) =
        source.convert(&described, blobs, &bootstrap, form.media_types, &form.annotations);
    let digest =
        destination.put_manifest(media_type, manifest.clone()).await.map_err(push("the manifest"))?;
    Ok(Assembled { media_type: media_type.to_owned(), manifest, digest, config: config_digest })
}

/// Stores the bootstrap of `layers` itself as a file, with their blobs and those that only a chunk dictionary has.
pub(crate) async fn assemble_files(
    layers: Vec<Arc<ConvertedLayer>>,
    recipe: &Arc<Recipe>,
    staging: &Arc<Staging>,
) -> Result<(), AssembleError> {
    let making = Arc::clone(recipe);
    let own: Vec<Digest> = layers.iter().map(|layer| layer.digest.clone()).collect();
    let made = tokio::task::spawn_blocking(move || bootstrap::build(&layers, &making)).await??;
    for digest in outside(&made.blobs, own.iter()) {
        dictionary(recipe).provide(&digest, staging).await?;
    }
    for (name, content) in made.files {
        let put = staging.put_file(&name, content).await;
        put.map_err(|error| AssembleError::Push { what: "the bootstrap", error })?;
    }
    Ok(())
}

/// Those of the blobs in use that are not the layers' own.
fn outside<'a>(used: &[Digest], own: impl Iterator<Item = &'a Digest>) -> Vec<Digest> {
    let own: HashSet<&Digest> = own.collect();
    used.iter().filter(|digest| !own.contains(digest)).cloned().collect()
}

/// The layer of a manifest that a converted layer's blob is.
fn blob_layer(layer: &ConvertedLayer, recipe: &Recipe) -> BlobLayer {
    BlobLayer {
        described: Described { digest: layer.digest.clone(), size: layer.size },
        annotations: announcement(layer, recipe.fingerprint()),
    }
}

/// Where the blobs are that only a chunk dictionary has.
fn dictionary(recipe: &Recipe) -> &DictionaryBlobs {
    recipe.dictionary().map_or(&DictionaryBlobs::Unknown, |dictionary| &dictionary.blobs)
}

impl From<Assembled> for Stored {
    fn from(image: Assembled) -> Self {
        Self { media_type: image.media_type, content: image.manifest, digest: image.digest }
    }
}

/// Writes the bootstrap layer on a thread of its own and stores it while it is written.
async fn push_bootstrap(
    layers: Vec<Arc<ConvertedLayer>>,
    recipe: &Arc<Recipe>,
    destination: &dyn Destination,
) -> Result<(Packed, u64), AssembleError> {
    let push = |error| AssembleError::Push { what: "the bootstrap", error };
    let making = Arc::clone(recipe);
    let (sender, mut pieces) = mpsc::channel::<Bytes>(QUEUE);
    let packing =
        tokio::task::spawn_blocking(move || bootstrap::pack(&layers, &making, OutputWriter::new(sender)));
    let upload = async move {
        let mut held = Held::default();
        while let Some(piece) = pieces.recv().await {
            if held.push(piece) {
                // Begun when there is something: merging takes its time, and uploads may expire.
                return Ok(Sent::Partly(held.send(&mut pieces, destination).await?));
            }
        }
        Ok::<_, StoreError>(Sent::Nothing(held))
    };
    let (uploaded, packed) = tokio::join!(upload, packing);
    match (uploaded, packed?) {
        (Ok(sent), Ok(packed)) => {
            let size = sent.finish(&packed.digest, destination).await.map_err(push)?;
            Ok((packed, size))
        }
        (Err(error), _) => Err(push(error)),
        (Ok(sent), Err(error)) => {
            sent.cancel().await;
            Err(error.into())
        }
    }
}
