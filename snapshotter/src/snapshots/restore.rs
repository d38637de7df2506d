//! Mounting images again that containers use, after a start or with a new daemon.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::{Snapshotter, beneath_of};
use crate::daemon::{Condition, describe};
use crate::error::Error;
use crate::nydus::Image;
use crate::state::{Kind, LazyLayer, Record, SnapshotId};

impl Snapshotter {
    /// Restores the mounts whenever a daemon is ready, and has it free what no image needs; never returns. Requests are answered meanwhile: those that need an
    /// image join its mount.
    pub(crate) async fn keep_restored(self: &Arc<Self>) {
        let mut condition = self.daemon.subscribe();
        loop {
            let ready = matches!(*condition.borrow_and_update(), Condition::Ready(_));
            if ready {
                self.restore().await;
                self.free_blobs().await;
            }
            if condition.changed().await.is_err() {
                return;
            }
        }
    }

    async fn restore(&self) {
        let images = match self.images_of_containers().await {
            Ok(images) => images,
            Err(error) => return warn!(error = describe(&error), "cannot tell which images to mount"),
        };
        if images.is_empty() {
            return;
        }
        info!(images = images.len(), "mounting the images in use");
        let permits = Arc::new(Semaphore::new(self.restore_concurrency));
        let mut mounting = JoinSet::new();
        for image in images {
            let (permits, images) = (Arc::clone(&permits), Arc::clone(&self.images));
            mounting.spawn(async move {
                let _permit = permits.acquire_owned().await;
                // An image that cannot be mounted concerns its own containers alone; the attempt is in the log.
                let _ = images.ensure(image).await;
            });
        }
        while mounting.join_next().await.is_some() {}
    }

    /// The images beneath active snapshots and views, and those of the node itself.
    pub(super) async fn images_in_use(&self) -> Result<Vec<Image>, Error> {
        let mut images = self.images_of_containers().await?;
        images.extend(self.images_of_node().await?);
        Ok(images)
    }

    /// The images beneath active snapshots and views.
    async fn images_of_containers(&self) -> Result<Vec<Image>, Error> {
        let bootstraps = self
            .on_state(|state| {
                let mut users = Vec::new();
                state.walk(|key, record| {
                    if record.kind != Kind::Committed && record.parent.is_some() {
                        users.push(key);
                    }
                    Ok(true)
                })?;
                let mut bootstraps = BTreeMap::<SnapshotId, _>::new();
                for key in users {
                    // What was removed meanwhile, or has nothing to show, needs no mount.
                    let Ok((record, parents)) = state.get_with_parents(&key) else { continue };
                    let Ok(beneath) = beneath_of(&key, &record.labels, parents) else { continue };
                    let Some((key, record)) = beneath.image else { continue };
                    let lazy = record.lazy.then(|| state.lazy_layer(record.id));
                    bootstraps.insert(record.id, (key, record, lazy));
                }
                Ok(bootstraps)
            })
            .await?;
        let image = |(key, record, lazy): (String, Record, Option<Result<LazyLayer, Error>>)| {
            let image = match lazy {
                Some(layer) => layer.map(|layer| self.image_of_lazy(&record, layer)),
                None => self.image_of(&key, &record),
            };
            image.inspect_err(|error| warn!(error = describe(error), "cannot mount an image in use")).ok()
        };
        Ok(bootstraps.into_values().filter_map(image).collect())
    }
}
