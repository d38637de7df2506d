//! The layers of all images, each converted once while it is read, several at a time.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use registry::client::Descriptor;
use registry::digest::Digest;
use tokio_util::sync::CancellationToken;

use super::error::ConversionError;
use super::{Job, short};
use crate::destination::{BlobWriter, CopyError, StoreError, begin_copy};
use crate::layer::{Claimed, ConvertError, ConvertedLayer, Flight, LayerConversion};
use crate::progress::Task;
use crate::source::{BlobStream, Source, SourceError};

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
                Ok((digest, layer)) => drop(converted.insert(digest, layer)),
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
    ) -> Result<(Digest, Arc<ConvertedLayer>), ConversionError> {
        let digest = layer.digest();
        let task = self.progress.task(0, format!("layer {}", short(digest)), layer.size());
        let claimed = stop.run_until_cancelled(self.claim(digest)).await;
        let converted = match claimed.ok_or(ConversionError::Cancelled)? {
            Ok(Claimed::Known(layer)) => {
                tracing::debug!(image = self.name, layer = %digest, blob = %layer.digest, "layer known");
                Ok(layer)
            }
            Ok(Claimed::Absent(flight)) => self.convert_absent(source, layer, flight, stop, &task).await,
            Err(error) => Err(error),
        };
        match converted {
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

    /// Whether it is remembered what layers become: those that are to be flattened are made for this image alone.
    fn remembers(&self) -> bool {
        self.scratch.is_none()
    }

    /// What is known of a layer.
    async fn claim(&self, digest: &Digest) -> Result<Claimed, ConversionError> {
        if !self.remembers() {
            return Ok(Claimed::Absent(None));
        }
        let claimed = self.converter.claim(digest, &self.present, self.destination.as_ref()).await;
        claimed.map_err(|error| self.layer_error(digest, error.into()))
    }

    async fn convert_absent(
        &self,
        source: &Source,
        layer: &Descriptor,
        flight: Option<Flight>,
        stop: &CancellationToken,
        task: &Task,
    ) -> Result<Arc<ConvertedLayer>, ConversionError> {
        let digest = layer.digest();
        let mut feed =
            Feed { digest, flight, plain: self.begin_plain(source, layer, stop).await?, stop, task };
        let opened = stop.run_until_cancelled(source.blob(layer)).await;
        let converted = match opened {
            None => Err(ConversionError::Cancelled),
            Some(Err(error)) => Err(self.read_error(digest, error)),
            Some(Ok(blob)) => self.feed(blob, &mut feed).await,
        };
        match (converted, feed.plain.take()) {
            (Ok(converted), plain) => {
                if let Some(plain) = plain {
                    let stored = stop.run_until_cancelled(plain.finish(digest)).await;
                    let stored = stored.ok_or(ConversionError::Cancelled)?;
                    stored.map_err(|error| self.copy_error(digest, error))?;
                }
                let converted = Arc::new(converted.made_of(digest));
                self.converted.fetch_add(1, Ordering::Relaxed);
                if self.remembers() {
                    self.converter.remember(&converted, feed.flight.take(), self.destination.as_ref());
                }
                Ok(converted)
            }
            (Err(error), plain) => {
                if let Some(plain) = plain {
                    plain.cancel().await;
                }
                Err(error)
            }
        }
    }

    /// Begins to store the layer as it is, where that is asked for and it is not there: what is read goes both ways.
    async fn begin_plain(
        &self,
        source: &Source,
        layer: &Descriptor,
        stop: &CancellationToken,
    ) -> Result<Option<Box<dyn BlobWriter>>, ConversionError> {
        if !self.options.also_oci {
            return Ok(None);
        }
        let begun = stop.run_until_cancelled(begin_copy(source, layer, self.destination.as_ref())).await;
        let begun = begun.ok_or(ConversionError::Cancelled)?;
        begun.map_err(|error| self.copy_error(layer.digest(), error))
    }

    /// Converts what `blob` reads, unless it stops.
    async fn feed(
        &self,
        mut blob: BlobStream,
        feed: &mut Feed<'_>,
    ) -> Result<ConvertedLayer, ConversionError> {
        let (digest, stop) = (feed.digest, feed.stop);
        let (converter, destination) = self.layer_converter();
        let mut conversion = converter.convert(&destination);
        loop {
            let piece = match stop.run_until_cancelled(blob.next()).await {
                Some(Ok(Some(piece))) => piece,
                // Here the content has been found to have the layer's digest.
                Some(Ok(None)) => break,
                Some(Err(error)) => {
                    conversion.cancel().await;
                    return Err(self.read_error(digest, error));
                }
                None => return Err(give_up(conversion).await),
            };
            match stop.run_until_cancelled(conversion.write(piece.clone())).await {
                Some(written) => written.map_err(|error| self.layer_error(digest, error))?,
                None => return Err(give_up(conversion).await),
            }
            match stop.run_until_cancelled(feed.keep(piece)).await {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    conversion.cancel().await;
                    return Err(self.copy_error(digest, error));
                }
                None => return Err(give_up(conversion).await),
            }
        }
        // A blob that is being stored now is whole: whoever does not want it any more need not wait until it is checked.
        match stop.run_until_cancelled(conversion.end()).await {
            Some(finished) => finished.map_err(|error| self.layer_error(digest, error)),
            None => {
                conversion.abort().await;
                Err(ConversionError::Cancelled)
            }
        }
    }

    fn layer_error(&self, layer: &Digest, error: ConvertError) -> ConversionError {
        let (name, layer) = (self.name.clone(), layer.clone());
        ConversionError::Layer { name, layer, error: Box::new(error) }
    }

    fn read_error(&self, layer: &Digest, error: SourceError) -> ConversionError {
        let (name, layer) = (self.name.clone(), layer.clone());
        ConversionError::Read { name, layer, error: Box::new(error) }
    }

    fn copy_error(&self, digest: &Digest, error: impl Into<CopyError>) -> ConversionError {
        let (name, digest) = (self.name.clone(), digest.clone());
        ConversionError::Copy { name, digest, error: Box::new(error.into()) }
    }

    /// Converts the files of a directory.
    pub(super) async fn convert_tree_of_files(&self, path: &Path) -> Result<ConvertedLayer, ConversionError> {
        let task = self.progress.task(0, "files".to_owned(), 0);
        let (converter, destination) = self.layer_converter();
        let conversion = converter.convert_directory(path.to_owned(), &destination, self.cancel.clone());
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

/// A layer on its way from where it is read.
struct Feed<'a> {
    digest: &'a Digest,
    flight: Option<Flight>,
    /// Where it is stored as it is, too.
    plain: Option<Box<dyn BlobWriter>>,
    stop: &'a CancellationToken,
    task: &'a Task,
}

impl Feed<'_> {
    /// A piece has gone to the conversion.
    async fn keep(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.task.advance(piece.len() as u64);
        if let Some(flight) = &self.flight {
            flight.progress();
        }
        match &mut self.plain {
            Some(plain) => plain.write(piece).await,
            None => Ok(()),
        }
    }
}

async fn give_up(conversion: LayerConversion) -> ConversionError {
    conversion.cancel().await;
    ConversionError::Cancelled
}
