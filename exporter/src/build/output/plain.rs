//! The build's own plain image, stored as it is for the nydus image to stand beside.

use std::collections::HashMap;

use bytes::Bytes;
use image::destination::BlobWriter;
use image::document::{Beside as Entry, Index, Manifest, Stored};
use registry::digest::Digest;

use super::{Output, OutputError};
use crate::build::keys::Beside;

impl Output {
    /// Whether layers are stored as they are, too.
    pub(crate) fn keeps_plain(&self) -> bool {
        self.attrs.beside == Beside::Own
    }

    /// Whether the layer `digest` has to come to be stored as it is.
    pub(super) async fn lacks_plain(&self, digest: &Digest) -> Result<bool, OutputError> {
        if !self.keeps_plain() || self.received().plain.contains(digest) {
            return Ok(false);
        }
        let failed = |error| self.push_error(format!("layer {digest}"), error);
        let destination = self.destination().await?.as_ref();
        let there = destination.has_blob(digest).await.map_err(failed)?
            || match self.remembering().await? {
                Some(known) => known.mount_source(digest, destination).await.map_err(failed)?,
                None => false,
            };
        if there {
            self.received().plain.insert(digest.clone());
        }
        Ok(!there)
    }

    /// Begins to store the layer `digest` as it is, where that is asked for and it is not there.
    pub(crate) async fn begin_plain(
        &self,
        digest: &Digest,
    ) -> Result<Option<Box<dyn BlobWriter>>, OutputError> {
        if !self.lacks_plain(digest).await? {
            return Ok(None);
        }
        let begun = self.destination().await?.begin().await;
        begun.map(Some).map_err(|error| self.push_error(format!("layer {digest}"), error))
    }

    /// All of the layer `digest` has been written, and was found to have that digest.
    pub(crate) async fn add_plain(
        &self,
        digest: &Digest,
        writer: Box<dyn BlobWriter>,
    ) -> Result<(), OutputError> {
        let stored = writer.finish(digest).await;
        stored.map_err(|error| self.push_error(format!("layer {digest}"), error))?;
        self.received().plain.insert(digest.clone());
        Ok(())
    }

    /// Stores config and manifest of the plain image, whose layers are there.
    pub(super) async fn store_plain(
        &self,
        source: &Manifest,
        content: &Bytes,
        config: Bytes,
    ) -> Result<Stored, OutputError> {
        let destination = self.destination().await?;
        let put = destination.put_blob(config).await;
        put.map_err(|error| self.push_error("the plain image's config", error))?;
        let media_type = source.media_type().to_owned();
        let put = destination.put_manifest(&media_type, content.clone()).await;
        let digest = put.map_err(|error| self.push_error("the plain image's manifest", error))?;
        Ok(Stored { media_type, content: content.clone(), digest })
    }

    /// `index` with the nydus images behind the plain ones, which are called `sources` and stay as they are.
    pub(super) fn with_nydus(&self, index: &Index, sources: &[Digest]) -> Stored {
        let received = self.received();
        let entry = |source: &Digest| {
            let image = received.beside.get(source)?;
            Some(Entry {
                plain: source.clone(),
                nydus: image.nydus.clone(),
                platform: image.platform.to_json(),
                attested: image.attested.clone(),
            })
        };
        let beside: Vec<Entry> = sources.iter().filter_map(entry).collect();
        index.with_nydus(&beside, &HashMap::new())
    }

    /// The index of the one plain image `plain`, called `source`, with its nydus image.
    pub(super) async fn index_of(&self, source: &Digest, plain: &Stored) -> Result<Stored, OutputError> {
        let mut descriptor = plain.descriptor();
        if let Some(image) = self.received().beside.get(source) {
            descriptor["platform"] = image.platform.to_json();
        }
        let index = self.with_nydus(&Index::of(&descriptor), std::slice::from_ref(source));
        self.put_index(index).await
    }

    /// Stores an index, or an only manifest, under its digest.
    pub(super) async fn put_index(&self, index: Stored) -> Result<Stored, OutputError> {
        let Stored { media_type, content, .. } = &index;
        let put = self.destination().await?.put_manifest(media_type, content.clone()).await;
        put.map_err(|error| self.push_error("the index", error))?;
        Ok(index)
    }
}
