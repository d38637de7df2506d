//! Where an output's layers go, and what becomes of them if they are to be flattened.
//!
//! A known flattened image needs none of its layers, and shows only when all of them have been announced: so layers are left with
//! buildkitd as far as it keeps them, and fetched for an image that is not known.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use image::destination::Destination;
use image::document::{Manifest, flattened};
use image::layer::{ConvertError, ConvertedLayer, Converter};
use registry::digest::Digest;

use super::{Output, OutputError};
use crate::build::prepared::Prepared;

/// So many layers are fetched at once: as many as buildkitd sends.
const FETCHED_AT_ONCE: usize = 4;

/// What an image is made of: manifest, config and layers.
pub(super) type Parts = (Bytes, Bytes, Vec<Arc<ConvertedLayer>>);

impl Output {
    /// Where layers go as they come.
    pub(crate) async fn layer_destination(&self) -> Result<Arc<dyn Destination>, OutputError> {
        // A registry that does not answer fails the build before anything is converted, wherever layers go first.
        let destination = self.destination().await?;
        Ok(self.prepared().await?.destination().unwrap_or_else(|| Arc::clone(destination)))
    }

    /// What knows the layers of earlier builds. Those that are flattened are kept nowhere.
    pub(super) async fn remembering(&self) -> Result<Option<&Converter>, OutputError> {
        let prepared = self.prepared().await?;
        Ok(prepared.scratch.is_none().then_some(&prepared.layer))
    }

    /// Whether the blob `digest` of `total` bytes, which nobody has converted, is a layer that stays with buildkitd until it is known
    /// to be needed.
    pub(crate) async fn leaves(&self, digest: &Digest, total: u64) -> Result<bool, OutputError> {
        let Some(kept) = self.kept.as_ref().filter(|_| !self.keeps_plain()) else { return Ok(false) };
        if self.prepared().await?.scratch.is_none() || !kept.has_layer(digest, total).await {
            return Ok(false);
        }
        tracing::debug!(image = self.title(), layer = %digest, "layer is left with buildkitd");
        self.received().left.insert(digest.clone(), total);
        Ok(true)
    }

    /// Converts those of `layers` that were left with buildkitd.
    async fn fetch_left(&self, layers: &[&Digest]) -> Result<(), OutputError> {
        let Some(kept) = &self.kept else { return Ok(()) };
        // Images for two platforms may share layers.
        let _turn = self.fetching.lock().await;
        let wanted: Vec<(Digest, u64)> = {
            let received = self.received();
            let absent = layers.iter().filter(|digest| !received.layers.contains_key(**digest));
            absent.filter_map(|digest| Some(((*digest).clone(), *received.left.get(*digest)?))).collect()
        };
        let fetching: Vec<_> = wanted.iter().map(|(digest, total)| kept.feed(self, digest, *total)).collect();
        stream::iter(fetching).buffer_unordered(FETCHED_AT_ONCE).try_collect().await
    }

    /// The manifest, the config and the layers of the image that `source` and `config` are the documents of: one layer, if they are to be
    /// flattened.
    pub(super) async fn parts(
        &self,
        source: &Manifest,
        content: &Bytes,
        config: &Bytes,
    ) -> Result<Parts, OutputError> {
        let digests: Vec<&Digest> = source.layers.iter().map(|layer| layer.digest()).collect();
        let Prepared { image, scratch, .. } = self.prepared().await?;
        let Some(scratch) = scratch.as_ref().filter(|_| !digests.is_empty()) else {
            return Ok((content.clone(), config.clone(), self.layers_of(&digests).await?));
        };
        let failed =
            |error: ConvertError| OutputError::Flatten { title: self.title(), error: Box::new(error) };
        let destination = self.destination().await?;
        // Before layers are fetched that buildkitd still has: nobody needs them if the one blob is there.
        let known = image.flattened(digests.iter().copied(), &self.present, destination.as_ref()).await;
        let layer = match known.map_err(|error| failed(error.into()))? {
            Some(known) => {
                self.task(format!("reusing {} layers, flattened", digests.len()), 0).finish();
                known
            }
            None => {
                self.fetch_left(&digests).await?;
                let layers = self.layers_of(&digests).await?;
                let task = self.task(format!("flattening {} layers", layers.len()), 0);
                let layer = image.flatten(layers, scratch, &self.present, destination).await.map_err(failed);
                match layer {
                    Ok(layer) => {
                        task.finish();
                        layer
                    }
                    Err(error) => {
                        task.fail(&error.to_string());
                        return Err(error);
                    }
                }
            }
        };
        let (content, config) = flattened(content, config).map_err(|error| self.document_error(error))?;
        Ok((content, config, vec![layer]))
    }
}
