//! `merge-manifest`: the images go into the indexes that their names have. A registry cannot be told to replace an index only if nobody has
//! since, so that builds of this process take turns, and what another process has written over is put there again.

use image::assemble::{MergedIndex, NydusImage, merge};
use image::destination::Destination;
use image::document::Stored;
use registry::client::Client;
use registry::digest::Digest;
use registry::reference::Reference;

use super::{Output, OutputError};

/// How often images are put there, if others write over them: each of so many that begin at once gets its round.
const ROUNDS: usize = 8;

impl Output {
    /// Puts the images into the index of each name, and returns the first of those.
    pub(super) async fn publish_merged(&self) -> Result<Stored, OutputError> {
        let mut images: Vec<NydusImage> = self.received().beside.values().cloned().collect();
        images.sort_by_key(|image| image.platform.to_string());
        let destination = self.destination().await?.as_ref();
        let Some((client, _)) = destination.repository().filter(|_| !images.is_empty()) else {
            return Err(OutputError::NoImage { title: self.title() });
        };
        let built: Vec<&Digest> = images.iter().map(|image| &image.nydus.digest).collect();
        let saved = self.embed(&built).await?;
        let mut first = None;
        for name in &self.attrs.names {
            let step = self.progress.step(self.index, format!("pushing next to the plain image at {name}"));
            match self.merge_into(name, client, destination, &images, &saved).await {
                Ok(merged) => {
                    first.get_or_insert(merged);
                }
                Err(error) => {
                    step.fail(&error.to_string());
                    return Err(error);
                }
            }
            step.finish();
        }
        first.ok_or_else(|| OutputError::NoImage { title: self.title() })
    }

    /// Puts the images into the index of `name`, until they are there.
    async fn merge_into(
        &self,
        name: &Reference,
        client: &Client,
        destination: &dyn Destination,
        images: &[NydusImage],
        saved: &[Digest],
    ) -> Result<Stored, OutputError> {
        let merge_error = |error| OutputError::Merge { title: self.title(), error: Box::new(error) };
        let _turn = self.preparation.name_turns.take(name).await;
        for round in 0..ROUNDS {
            let merged = merge(client, name, images).await.map_err(merge_error)?;
            if round == 0 {
                self.warn_of_stale(name, &merged);
            }
            // What was saved for an earlier build is not this one's.
            let merged = MergedIndex { index: self.bound(merged.index.clone(), saved)?, ..merged };
            let published = destination.publish(std::slice::from_ref(name), Some(&merged.index)).await;
            published.map_err(|error| self.push_error(name.to_string(), error))?;
            if !merged.is_lost(client, name).await.map_err(merge_error)? {
                return Ok(merged.index);
            }
            tracing::info!(build = self.build, %name, "another process wrote the index at the same time: once more");
        }
        Err(OutputError::WrittenOver { title: self.title(), name: Box::new(name.clone()), rounds: ROUNDS })
    }

    fn warn_of_stale(&self, name: &Reference, merged: &MergedIndex) {
        for stale in &merged.stale {
            tracing::warn!(build = self.build, %name, "{stale}");
            self.progress.step(self.index, format!("warning: {name}: {stale}")).finish();
        }
    }
}
