//! Images put on one another by what describes them: their layers in one manifest, or their trees in one bootstrap. Blobs stay what
//! they are, and are mounted where the registry has them.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::Arc;

use bytes::Bytes;
use registry::client::Descriptor;
use registry::digest;
use registry::media_types::{DOCKER_LAYER, OCI_LAYER};
use serde_json::{Value, json};

use crate::assemble::{AssembleError, Form, assemble_merged};
use crate::destination::{CopyError, Destination, StoreError, copy_blob};
use crate::document::{
    DocumentError, ImageConfig, MediaTypes, OCI_CONFIG, OCI_MANIFEST, Object, Role, Stored, parse,
};
use crate::files::{self, FilesError};
use crate::layer::{ConvertError, ConvertedLayer, Converter, LayerCache};
use crate::options::{Options, OptionsError, Recipe};
use crate::source::{Source, SourceError};

/// Why images are not merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeImagesError {
    /// One of them cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A bootstrap cannot be read.
    #[error("{name}: {error}")]
    Bootstrap {
        /// The image.
        name: String,
        /// What is wrong.
        error: FilesError,
    },
    /// A document is not what it should be.
    #[error("{name}: {error}")]
    Document {
        /// The image.
        name: String,
        /// What is wrong.
        error: DocumentError,
    },
    /// A blob cannot be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// Something cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The layer that is put on top cannot be made.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// Layers cannot be made for the images.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The bootstrap cannot be made.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
}

/// An image of one platform, with its documents.
#[derive(Clone, Debug)]
pub struct MergePart {
    /// Where its blobs are.
    pub source: Source,
    /// Its manifest.
    pub manifest: Bytes,
    /// Its config.
    pub config: Bytes,
    /// Its layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// What a merged image is to say of itself.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// Its config; layers and history are filled in.
    pub config: Object,
    /// Annotations of its manifest, in place of all others.
    pub annotations: Object,
    /// A tar of files that lie on top.
    pub on_top: Option<Bytes>,
}

impl MergePart {
    /// The layer with the bootstrap, of a nydus image.
    pub fn bootstrap(&self) -> Option<&Descriptor> {
        self.layers.iter().find(|layer| Role::of(layer) == Some(Role::Bootstrap))
    }

    fn wrong(&self) -> impl FnOnce(DocumentError) -> MergeImagesError {
        let name = self.source.name();
        move |error| MergeImagesError::Document { name, error }
    }
}

/// Merges plain images: the layers of each come on those of the one before.
///
/// # Errors
///
/// When something cannot be read or stored.
pub async fn plain(
    parts: &[MergePart],
    said: &Said,
    destination: &dyn Destination,
) -> Result<Stored, MergeImagesError> {
    let (mut layers, mut diff_ids, mut history) = (Vec::new(), Vec::new(), Vec::new());
    for part in parts {
        let manifest = parse("manifest", &part.manifest).map_err(part.wrong())?;
        let config = parse("image config", &part.config).map_err(part.wrong())?;
        let ids =
            ImageConfig::parse(&part.config).and_then(|config| config.diff_ids()).map_err(part.wrong())?;
        // Before anything of it is copied: the lists of all images are put one behind the other, and would be out of step.
        if ids.len() != part.layers.len() {
            let error = DocumentError::new("image config", "expected a diff id for each layer");
            return Err(part.wrong()(error));
        }
        diff_ids.extend(ids.iter().map(|id| Value::from(id.as_ref())));
        history.extend(history_of(&config, part.layers.len()));
        for layer in &part.layers {
            copy_blob(&part.source, layer, destination).await?;
        }
        layers
            .extend(manifest.get("layers").and_then(Value::as_array).into_iter().flatten().cloned().map(oci));
    }
    if let Some(tar) = &said.on_top {
        let digest = destination.put_blob(tar.clone()).await?;
        layers.push(json!({"mediaType": OCI_LAYER, "digest": digest.as_ref(), "size": tar.len()}));
        diff_ids.push(digest.as_ref().into());
        history.push(json!({"created_by": "nydus-cluster cluster merge"}));
    }
    let mut config = said.config.clone();
    config.insert("rootfs".to_owned(), json!({"type": "layers", "diff_ids": diff_ids}));
    config.insert("history".to_owned(), history.into());
    let config = Bytes::from(Value::Object(config).to_string());
    let digest = destination.put_blob(config.clone()).await?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest.as_ref(), "size": config.len()},
        "layers": layers, "annotations": said.annotations,
    });
    let content = Bytes::from(manifest.to_string());
    let digest = destination.put_manifest(OCI_MANIFEST, content.clone()).await?;
    Ok(Stored { media_type: OCI_MANIFEST.to_owned(), content, digest })
}

fn oci(mut layer: Value) -> Value {
    let kind = layer.get("mediaType").and_then(Value::as_str).unwrap_or_default();
    match kind.strip_prefix(DOCKER_LAYER) {
        Some("") => layer["mediaType"] = OCI_LAYER.into(),
        Some(".gzip") => layer["mediaType"] = format!("{OCI_LAYER}+gzip").into(),
        _ => {}
    }
    layer
}

/// An image's history, with an entry that is not empty for each of its layers.
fn history_of(config: &Object, layers: usize) -> Vec<Value> {
    let mut history = config.get("history").and_then(Value::as_array).cloned().unwrap_or_default();
    let is_layer = |entry: &&Value| !entry.get("empty_layer").and_then(Value::as_bool).unwrap_or(false);
    let count = history.iter().filter(is_layer).count();
    if count > layers {
        history.clear();
    }
    for _ in history.iter().filter(is_layer).count()..layers {
        history.push(json!({"comment": "layer without history"}));
    }
    history
}

/// Merges nydus images: the tree of each is laid over that of the one before, as if its files were copied there.
///
/// # Errors
///
/// When something cannot be read or stored, or the images are built in ways that do not go together.
pub async fn nydus(
    parts: &[MergePart],
    said: &Said,
    media_types: MediaTypes,
    destination: &Arc<dyn Destination>,
) -> Result<Stored, MergeImagesError> {
    let (mut layers, mut sizes) = (Vec::new(), HashMap::new());
    for part in parts {
        let Some(bootstrap) = part.bootstrap() else { continue };
        let image = files::bootstrap_image(&part.source, bootstrap).await;
        let image = image.map_err(|error| MergeImagesError::Bootstrap { name: part.source.name(), error })?;
        layers.push(Arc::new(whole(image)));
        for blob in part.layers.iter().filter(|layer| Role::of(layer) == Some(Role::Blob)) {
            // Blobs are stored before the manifest that names them: registries refuse a manifest whose blobs they do not
            // have.
            copy_blob(&part.source, blob, destination.as_ref()).await?;
            sizes.insert(blob.digest().clone(), blob.size());
        }
    }
    let recipe = recipe(&layers)?;
    if let Some(tar) = &said.on_top {
        let converter = Converter::new(recipe.clone(), 1, LayerCache::new(0));
        let built = converter.convert_read(Cursor::new(tar.clone()), destination).built().await?;
        let layer = built.store(destination.as_ref()).await?;
        sizes.insert(layer.digest.clone(), layer.size);
        layers.push(Arc::new(layer));
    }
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest::sha256(b"").as_ref(), "size": 0},
        "layers": [], "annotations": said.annotations,
    });
    let config = Value::Object(said.config.clone()).to_string();
    let manifest = manifest.to_string();
    let (recipe, form) = (Arc::new(recipe), Form { media_types, annotations: Vec::new() });
    let (manifest, config) = (manifest.as_bytes(), config.as_bytes());
    let assembled = assemble_merged(manifest, config, layers, &sizes, &recipe, &form, destination.as_ref());
    Ok(assembled.await?.into())
}

/// A whole image as one layer, which takes nothing away.
fn whole(image: rafs::tree::Image) -> ConvertedLayer {
    let layer = rafs::tree::Layer { tree: image.tree, blobs: image.blobs };
    ConvertedLayer { layer, digest: digest::sha256(b""), size: 0, source: None, diff_id: None, toc: None }
}

/// How what is put on top has to be built to go with the rest.
fn recipe(layers: &[Arc<ConvertedLayer>]) -> Result<Recipe, OptionsError> {
    let blob = layers.iter().flat_map(|layer| &layer.layer.blobs).next();
    let mut options = Options::default();
    if let Some(blob) = blob {
        options.digester = blob.digester;
        options.chunk_size = blob.chunk_size;
    }
    Recipe::new(options, None, Vec::new(), 1)
}
