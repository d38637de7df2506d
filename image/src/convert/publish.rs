//! From converted layers to an image under its name, and what is kept of the source next to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::source::{Document, Source};
use registry::client::Descriptor;
use registry::digest::Digest;
use registry::nydus;
use serde_json::json;

use super::error::ConversionError;
use super::layers::Layers;
use super::target::Target;
use super::tree::{ImageNode, IndexNode, KeptNode, Tree, distinct_layers};
use super::{Converted, Job, short};
use crate::assemble::{Form, assemble, assemble_files};
use crate::destination::copy_blob;
use crate::document::{Beside, Index, MediaTypes, Stored, flattened};
use crate::layer::ConvertedLayer;

/// The version that images state as their builder's.
const BUILDER: &str = concat!("nydus-cluster ", env!("CARGO_PKG_VERSION"));

impl Job<'_> {
    /// Stores what the tree becomes, and gives it its name.
    pub(super) async fn publish(
        &self,
        source: &Source,
        tree: &Tree,
        layers: &Layers,
        target: Target,
    ) -> Result<Converted, ConversionError> {
        let images = tree.images();
        let platforms = images.iter().map(|image| image.platform.clone()).collect();
        let publishing = async {
            let digest = match (target.files(), images.first()) {
                (Some(_), Some(image)) => {
                    self.publish_files(image, layers_of(image, layers), target).await?;
                    None
                }
                _ => {
                    let root = self.store(source, tree, layers, true).await?;
                    target.publish(Some(&root)).await?;
                    Some(root.digest)
                }
            };
            let (bytes, layers) = (self.bytes(layers.values()), distinct_layers(&images).len());
            let reused_layers = layers.saturating_sub(self.converted.load(Ordering::Relaxed));
            Ok(Converted { digest, platforms, layers, reused_layers, bytes })
        };
        self.cancel.run_until_cancelled(publishing).await.ok_or(ConversionError::Cancelled)?
    }

    /// Stores the image of a directory, and gives it its name.
    pub(super) async fn publish_directory(
        &self,
        image: &ImageNode,
        layer: Arc<ConvertedLayer>,
        target: Target,
    ) -> Result<Converted, ConversionError> {
        let (platforms, own) = (vec![image.platform.clone()], Arc::clone(&layer));
        let digest = if target.files().is_some() {
            self.publish_files(image, vec![layer], target).await?;
            None
        } else {
            let root = self.assemble(image, vec![layer], self.form(None, MediaTypes::Oci)).await?;
            target.publish(Some(&root)).await?;
            Some(root.digest)
        };
        let bytes = self.bytes([&own].into_iter());
        Ok(Converted { digest, platforms, layers: 1, reused_layers: 0, bytes })
    }

    /// The parts of one nydus image.
    async fn publish_files(
        &self,
        image: &ImageNode,
        layers: Vec<Arc<ConvertedLayer>>,
        target: Target,
    ) -> Result<(), ConversionError> {
        let Some(staging) = target.files() else { return Ok(()) };
        let task = self.progress.task(0, format!("image {}", image.platform), 0);
        let layers = self.flattened(image, layers).await?;
        assemble_files(layers, self.converter.recipe(), staging)
            .await
            .map_err(|error| ConversionError::Assemble { name: self.name.clone(), error: Box::new(error) })?;
        task.finish();
        target.publish(None).await
    }

    /// Stores what a part of the tree becomes. An image that is no index's (`root`) gets one for the nydus image to stand
    /// next to the plain one, if that is kept.
    async fn store(
        &self,
        source: &Source,
        tree: &Tree,
        layers: &Layers,
        root: bool,
    ) -> Result<Stored, ConversionError> {
        match tree {
            Tree::Kept(kept) => self.keep(source, kept).await,
            Tree::Index(index) => Box::pin(self.store_index(source, index, layers)).await,
            Tree::Image(image) if self.options.also_oci && root => {
                // Not what else its source says of it, such as the name that it has there.
                let plain = &image.document.descriptor;
                let descriptor = json!({
                    "mediaType": plain.media_type().to_string(),
                    "digest": plain.digest().as_ref(),
                    "size": plain.size(),
                    "platform": image.platform.to_json(),
                });
                let pair = self.pair(source, image, layers).await?;
                self.put(Index::of(&descriptor).with_nydus(&[pair], &HashMap::new())).await
            }
            Tree::Image(image) => {
                let form = self.form(Some((source, image)), MediaTypes::Oci);
                self.assemble(image, layers_of(image, layers), form).await
            }
        }
    }

    async fn store_index(
        &self,
        source: &Source,
        node: &IndexNode,
        layers: &Layers,
    ) -> Result<Stored, ConversionError> {
        let mut replaced = HashMap::new();
        let mut nydus = Vec::new();
        for (digest, child) in &node.children {
            match child {
                Tree::Image(image) if self.options.also_oci => {
                    nydus.push(self.pair(source, image, layers).await?);
                }
                child => {
                    drop(replaced.insert(digest.clone(), self.store(source, child, layers, false).await?))
                }
            }
        }
        let index = if self.options.also_oci {
            node.index.with_nydus(&nydus, &replaced)
        } else {
            node.index.convert(&replaced, true)
        };
        self.put(index).await
    }

    /// Keeps an image as it is, and stores the nydus image that stands next to it.
    async fn pair(
        &self,
        source: &Source,
        image: &ImageNode,
        layers: &Layers,
    ) -> Result<Beside, ConversionError> {
        let blobs = image.layers.iter().chain([&image.config_descriptor]);
        self.copy(source, &image.document, blobs).await?;
        let form = self.form(Some((source, image)), MediaTypes::BesidePlain);
        let nydus = self.assemble(image, layers_of(image, layers), form).await?;
        let (plain, platform) = (image.document.descriptor.digest().clone(), image.platform.to_json());
        Ok(Beside { plain, nydus, platform, attested: Vec::new() })
    }

    async fn assemble(
        &self,
        image: &ImageNode,
        layers: Vec<Arc<ConvertedLayer>>,
        form: Form,
    ) -> Result<Stored, ConversionError> {
        let name = format!("image {}", image.platform);
        let task = self.progress.task(0, name, 0);
        let layers = self.flattened(image, layers).await?;
        let failed = |error| ConversionError::Assemble { name: self.name.clone(), error: Box::new(error) };
        let (content, config) = match self.scratch {
            Some(_) => {
                flattened(&image.document.content, &image.config).map_err(|error| failed(error.into()))?
            }
            None => (image.document.content.clone(), image.config.clone()),
        };
        let assembled =
            assemble(&content, &config, layers, self.converter.recipe(), &form, self.destination.as_ref());
        let assembled = assembled.await.map_err(failed)?;
        task.finish();
        tracing::debug!(image = self.name, platform = %image.platform, digest = %assembled.digest, "image assembled");
        Ok(assembled.into())
    }

    /// The one layer that the image's layers become, if they are to be flattened; else these.
    async fn flattened(
        &self,
        image: &ImageNode,
        layers: Vec<Arc<ConvertedLayer>>,
    ) -> Result<Vec<Arc<ConvertedLayer>>, ConversionError> {
        let layer = match (self.known_flattened.get(image.digest()), &self.scratch) {
            (Some(known), _) => Arc::clone(known),
            (None, Some(scratch)) if !layers.is_empty() => {
                let task = self.progress.task(0, format!("flatten {}", image.platform), 0);
                let layer = self.converter.flatten(layers, scratch, &self.present, &self.destination).await;
                let failed =
                    |error| ConversionError::Flatten { name: self.name.clone(), error: Box::new(error) };
                let layer = layer.map_err(failed)?;
                task.finish();
                layer
            }
            (None, _) => return Ok(layers),
        };
        self.flattened_bytes.fetch_add(layer.size, Ordering::Relaxed);
        Ok(vec![layer])
    }

    /// What the manifest is like, which states where the image comes from.
    fn form(&self, from: Option<(&Source, &ImageNode)>, media_types: MediaTypes) -> Form {
        let mut annotations = vec![
            (nydus::ANNOTATION_FS_VERSION, nydus::FS_VERSION.to_owned()),
            (nydus::ANNOTATION_BUILDER_VERSION, BUILDER.to_owned()),
        ];
        if let Some((source, image)) = from {
            annotations
                .push((nydus::ANNOTATION_SOURCE_DIGEST, image.document.descriptor.digest().to_string()));
            if let Some((_, reference)) = source.registry() {
                annotations.push((nydus::ANNOTATION_SOURCE_REFERENCE, reference.to_string()));
            }
        }
        Form { media_types, annotations }
    }

    async fn keep(&self, source: &Source, kept: &KeptNode) -> Result<Stored, ConversionError> {
        self.copy(source, &kept.document, kept.blobs.iter()).await
    }

    /// Has a manifest and its blobs at the destination as they are.
    async fn copy(
        &self,
        source: &Source,
        document: &Document,
        blobs: impl Iterator<Item = &Descriptor>,
    ) -> Result<Stored, ConversionError> {
        for blob in blobs {
            let task = self.progress.task(0, format!("copy {}", short(blob.digest())), blob.size());
            let copied = copy_blob(source, blob, self.destination.as_ref()).await;
            copied.map_err(|error| {
                let (name, digest) = (self.name.clone(), blob.digest().clone());
                ConversionError::Copy { name, digest, error: Box::new(error) }
            })?;
            task.finish();
        }
        let media_type = document.descriptor.media_type().to_string();
        let (content, digest) = (document.content.clone(), document.descriptor.digest().clone());
        self.put(Stored { media_type, content, digest }).await
    }

    async fn put(&self, document: Stored) -> Result<Stored, ConversionError> {
        let put = self.destination.put_manifest(&document.media_type, document.content.clone()).await;
        put.map_err(|error| {
            let what = format!("manifest {}", document.digest);
            ConversionError::Store { what, error: Box::new(error) }
        })?;
        Ok(document)
    }
}

/// The image's layers as converted, in its order.
fn layers_of(image: &ImageNode, layers: &Layers) -> Vec<Arc<ConvertedLayer>> {
    image.layers.iter().filter_map(|layer| layers.get::<Digest>(layer.digest())).cloned().collect()
}
