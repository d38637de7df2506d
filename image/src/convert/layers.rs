//! The layers of all images, each converted once while it is read, several at a time.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::source::{BlobStream, Source};
use futures::{StreamExt as _, stream};
use oci_spec::image::Descriptor;
use registry::digest::Digest;
use tokio_util::sync::CancellationToken;

use super::error::ConversionError;
use super::{Job, short};
use crate::layer::{ConvertedLayer, LayerConversion};
use crate::progress::Task;

/// Converted layers by the digests of their sources.
pub(super) type Layers = HashMap<Digest, Arc<ConvertedLayer>>;

impl Job<'_> {
    /// Converts `layers`, each in bounded memory. The first that fails ends the others.
    pub(super) async fn convert_layers(
        &self,
        source: &Source,
        layers: Vec<Descriptor>,
    ) -> Result<Layers, ConversionError> {
        let stop = self.cancel.child_token();
        let conversions = layers.iter().map(|layer| self.convert_layer(source, layer, &stop));
        let mut running = stream::iter(conversions).buffer_unordered(self.converter.conversions());
        let mut converted = Layers::new();
        let mut failure = None;
        while let Some(result) = running.next().await {
            match result {
                Ok((digest, layer)) => drop(converted.insert(digest, Arc::new(layer))),
                Err(error) => {
                    // What the others say after this follows from it.
                    stop.cancel();
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(converted), Err)
    }

    async fn convert_layer(
        &self,
        source: &Source,
        layer: &Descriptor,
        stop: &CancellationToken,
    ) -> Result<(Digest, ConvertedLayer), ConversionError> {
        let digest = layer.digest();
        let (name, layer_digest) = (self.name.clone(), digest.clone());
        let opened = stop.run_until_cancelled(source.blob(layer)).await.ok_or(ConversionError::Cancelled)?;
        let blob = opened.map_err(|error| ConversionError::Read {
            name,
            layer: layer_digest,
            error: Box::new(error),
        })?;
        let task = self.progress.task(0, format!("layer {}", short(digest)), layer.size());
        match self.feed(blob, digest, stop, &task).await {
            Ok(converted) => {
                task.finish();
                tracing::debug!(image = self.name, layer = %digest, blob = %converted.digest, size = converted.size, "layer converted");
                Ok((digest.clone(), converted))
            }
            Err(error) => {
                task.fail(&error.to_string());
                Err(error)
            }
        }
    }

    async fn feed(
        &self,
        mut blob: BlobStream,
        digest: &Digest,
        stop: &CancellationToken,
        task: &Task,
    ) -> Result<ConvertedLayer, ConversionError> {
        let layer_error = |error| {
            let (name, layer) = (self.name.clone(), digest.clone());
            ConversionError::Layer { name, layer, error: Box::new(error) }
        };
        let mut conversion = self.converter.convert(&self.destination);
        loop {
            let piece = match stop.run_until_cancelled(blob.next()).await {
                Some(Ok(Some(piece))) => piece,
                // Here the content has been found to have the layer's digest.
                Some(Ok(None)) => break,
                Some(Err(error)) => {
                    conversion.cancel().await;
                    let (name, layer) = (self.name.clone(), digest.clone());
                    return Err(ConversionError::Read { name, layer, error: Box::new(error) });
                }
                None => return Err(give_up(conversion).await),
            };
            let size = piece.len() as u64;
            match stop.run_until_cancelled(conversion.write(piece)).await {
                Some(written) => written.map_err(layer_error)?,
                None => return Err(give_up(conversion).await),
            }
            task.advance(size);
        }
        // A blob that is being stored now is whole: whoever does not want it any more need not wait until it is checked.
        match stop.run_until_cancelled(conversion.end()).await {
            Some(finished) => finished.map_err(layer_error),
            None => {
                conversion.abort().await;
                Err(ConversionError::Cancelled)
            }
        }
    }

    /// Converts the files of a directory.
    pub(super) async fn convert_tree_of_files(&self, path: &Path) -> Result<ConvertedLayer, ConversionError> {
        let task = self.progress.task(0, "files".to_owned(), 0);
        let conversion =
            self.converter.convert_directory(path.to_owned(), &self.destination, self.cancel.clone());
        match conversion.await {
            Ok(layer) => {
                task.finish();
                Ok(layer)
            }
            Err(_) if self.cancel.is_cancelled() => Err(ConversionError::Cancelled),
            Err(error) => {
                let error = ConversionError::Directory { name: self.name.clone(), error: Box::new(error) };
                task.fail(&error.to_string());
                Err(error)
            }
        }
    }
}

async fn give_up(conversion: LayerConversion) -> ConversionError {
    conversion.cancel().await;
    ConversionError::Cancelled
}
