//! The container images that a result asks for: locked in it, and saved beside it.

use std::io::Cursor;
use std::sync::Arc;

use cluster::save::SaveOptions;
use cluster::saved::bind;
use image::assemble::{Assembled, Form};
use image::document::{Stored, with_labels, with_layer};
use image::layer::ConvertedLayer;
use registry::digest::{self, Digest};

use super::{Output, OutputError};
use crate::build::images::{self, ImagesError};
use crate::build::keys::Images;
use crate::build::together::{TogetherImages, TreeImages};

impl Output {
    /// Finds and locks the container images that the image `digest` asks for; the image with the lock on top.
    pub(super) async fn with_lock(
        &self,
        content: &[u8],
        config: &[u8],
        mut layers: Vec<Arc<ConvertedLayer>>,
        mut form: Form,
        digest: &Digest,
    ) -> Result<Assembled, OutputError> {
        let failed = |error| OutputError::Images { title: self.title(), error: Box::new(error) };
        let destination = self.destination().await?;
        let (client, repository) = destination.repository().ok_or(ImagesError::NoRegistry).map_err(failed)?;
        let task = self.task("looking for container images".to_owned(), 0);
        let platform = images::platform(config).map_err(failed)?;
        let image = repository.with_digest(digest.clone());
        let space = &self.preparation.together_space;
        let found = images::find(&image, &platform, client, &self.cluster, space).await.map_err(failed)?;
        task.finish();
        for warning in &found.warnings {
            self.task(format!("warning: {warning}"), 0).finish();
        }
        tracing::info!(image = self.title(), %platform, images = found.lock.images.len(), "container images locked");
        // It stays a layer of its own, even on top of one that all others were flattened to.
        let converter = &self.prepared().await?.image;
        let conversion = converter.convert_read(Cursor::new(found.layer.clone()), destination);
        let lock = digest::sha256(&found.layer);
        let wrong = |error| self.layer_error(&lock, error);
        let layer =
            conversion.built().await.map_err(wrong)?.store(destination.as_ref()).await.map_err(wrong)?;
        layers.push(Arc::new(layer));
        form.annotations.extend(found.annotations);
        let wrong = |error| self.document_error(error);
        let (content, config) =
            with_layer(content, config, &found.layer, images::CREATED_BY).map_err(wrong)?;
        let config = with_labels(&config, &found.labels).map_err(wrong)?;
        // Saved later, images come out of the archives once more.
        let archives = found.archives.filter(|_| self.attrs.images == Images::Embed);
        self.received().container_images.push(TreeImages { lock: found.lock, archives });
        self.assemble(&content, &config, layers, &form).await
    }

    /// Saves the container images of all platforms in the image's repositories, if they are to be embedded; returns the digests of what
    /// names them there. `built` are the image's own manifests or index, as far as they are stored.
    pub(super) async fn embed(&self, built: &[&Digest]) -> Result<Vec<Digest>, OutputError> {
        if self.attrs.images != Images::Embed {
            return Ok(Vec::new());
        }
        let failed = |error| OutputError::Images { title: self.title(), error: Box::new(error) };
        let destination = self.destination().await?;
        let (client, repository) = destination.repository().ok_or(ImagesError::NoRegistry).map_err(failed)?;
        let trees = std::mem::take(&mut self.received().container_images);
        let space = &self.preparation.together_space;
        let images = TogetherImages::of(trees, client, space).await.map_err(failed)?;
        let preparation = &self.preparation;
        let options = SaveOptions {
            // Its chunks are used where they are.
            cluster_image: built.iter().map(|digest| repository.with_digest(Digest::clone(digest))).collect(),
            layer_space: Arc::clone(&preparation.layer_space),
            // Another build may save to the same repository.
            keeps_layers: false,
            slots: preparation.converter.slots(),
            threads: preparation.threads,
            ..SaveOptions::default()
        };
        let mut saved: Option<Digest> = None;
        for name in &self.attrs.names {
            let step = self
                .progress
                .step(self.index, format!("saving {} container images for {name}", images.lock.images.len()));
            let saving = async {
                match &saved {
                    None => images::save(&images, name, client, options.clone()).await,
                    // All names are in one repository, which has them by now.
                    Some(digest) => {
                        images::name_saved(digest, name, client).await.map(|()| Some(digest.clone()))
                    }
                }
            };
            match saving.await {
                Ok(digest) => saved = digest,
                Err(error) => {
                    let error = failed(error);
                    step.fail(&error.to_string());
                    return Err(error);
                }
            }
            step.finish();
        }
        Ok(saved.into_iter().collect())
    }

    /// The image's index or only manifest `root`, bound to the saved images with these digests. Not stored yet.
    pub(super) fn bound(&self, root: Stored, saved: &[Digest]) -> Result<Stored, OutputError> {
        let content = bind(&root.content, saved).map_err(|error| self.document_error(error))?;
        Ok(Stored { digest: digest::sha256(&content), content, ..root })
    }
}
