//! Image sets, as the control socket has them, and the images that their layers show.

use std::sync::Arc;

use tracing::warn;

use super::Snapshotter;
use crate::control::{ImageSet, SetStatus};
use crate::daemon::describe;
use crate::error::Error;
use crate::nydus::{self, Image};
use crate::state::{ChainSource, LazyLayer, Record};

impl Snapshotter {
    /// Stores a set, instead of one of its name; whether anything is otherwise than before.
    pub(crate) async fn put_set(&self, set: ImageSet) -> Result<bool, Error> {
        self.on_state(move |state| {
            set.check()?;
            state.put_set(&set)
        })
        .await
    }

    /// Has the daemon read mounted images of sets from whom these name now. Failures concern one image each; it is told again when it
    /// is mounted again.
    pub(crate) async fn tell_backends(&self) {
        let images = match self.images_in_use().await {
            Ok(images) => images,
            Err(error) => return warn!(error = describe(&error), "cannot tell which images are mounted"),
        };
        for image in images {
            if let Err(error) = self.images.tell_backends(&image).await {
                warn!(
                    image = image.reference,
                    error = describe(&error),
                    "cannot tell who has an image's blobs"
                );
            }
        }
    }

    /// Forgets a set; whether there was one of that name.
    pub(crate) async fn remove_set(&self, name: String) -> Result<bool, Error> {
        self.on_state(move |state| state.remove_set(&name)).await
    }

    /// All sets, in order of their names.
    pub(crate) async fn sets(&self) -> Result<Vec<SetStatus>, Error> {
        self.on_state(|state| state.sets()).await
    }

    /// What the layer of an image set shows.
    pub(super) async fn lazy_image(&self, record: Record) -> Result<Image, Error> {
        let id = record.id;
        let layer = self.on_state(move |state| state.lazy_layer(id)).await?;
        Ok(self.image_of_lazy(&record, layer))
    }

    /// The same, of a layer that is known.
    pub(super) fn image_of_lazy(&self, record: &Record, layer: LazyLayer) -> Image {
        Image {
            id: record.id,
            reference: shown_as(record, &layer),
            bootstrap: nydus::bootstrap_in(&self.directories.upper(record.id)),
            mountpoint: self.directories.mountpoint(record.id),
            lazy: Some(Arc::new(layer)),
        }
    }
}

/// What people call it: the image, if it is all of one and containerd said whose it is.
fn shown_as(record: &Record, layer: &LazyLayer) -> String {
    match (&layer.source, nydus::reference_of(&record.labels)) {
        (ChainSource::Merged(_), Some(reference)) => reference.to_owned(),
        _ => format!("layers {} of {}", layer.chain, layer.set),
    }
}
