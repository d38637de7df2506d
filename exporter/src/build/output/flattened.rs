//! Where an output's layers go, and what becomes of them if they are to be flattened.

use std::sync::Arc;

use bytes::Bytes;
use image::destination::Destination;
use image::document::flattened;
use image::layer::{ConvertedLayer, Converter};

use super::{Output, OutputError};
use crate::build::prepared::Prepared;

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

    /// The manifest, the config and the one layer that these become, if they are to be flattened; else these.
    pub(super) async fn flattened(
        &self,
        content: &Bytes,
        config: &Bytes,
        layers: Vec<Arc<ConvertedLayer>>,
    ) -> Result<(Bytes, Bytes, Vec<Arc<ConvertedLayer>>), OutputError> {
        let Prepared { image, scratch, .. } = self.prepared().await?;
        let Some(scratch) = scratch.as_ref().filter(|_| !layers.is_empty()) else {
            return Ok((content.clone(), config.clone(), layers));
        };
        let (content, config) = flattened(content, config).map_err(|error| self.document_error(error))?;
        let task = self.task(format!("flattening {} layers", layers.len()), 0);
        match image.flatten(layers, scratch, self.destination().await?).await {
            Ok(layer) => {
                task.finish();
                Ok((content, config, vec![layer]))
            }
            Err(error) => {
                let error = OutputError::Flatten { title: self.title(), error: Box::new(error) };
                task.fail(&error.to_string());
                Err(error)
            }
        }
    }
}
