//! What an image of the lock is made of.

use image::source::{Document, Source};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;

use super::SaveError;
use crate::lock::Locked;

/// How deep indexes may lie in indexes.
const DEPTH_LIMIT: usize = 4;

/// The documents and blobs of an image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// Indexes, the outermost first. None where the name leads to a manifest.
    pub(crate) indexes: Vec<Document>,
    /// The manifests that the lock names.
    pub(crate) manifests: Vec<Document>,
    /// The configs and layers of these, each once.
    pub(crate) blobs: Vec<Descriptor>,
}

impl Plan {
    /// Reads the documents of `locked`.
    pub(crate) async fn of(locked: &Locked, source: &Source) -> Result<Self, SaveError> {
        let root = source.root().await?;
        if *root.descriptor.digest() != locked.digest {
            let found = root.descriptor.digest().clone();
            return Err(SaveError::Moved { locked: locked.digest.clone(), found });
        }
        let wanted: Vec<_> =
            locked.platforms.iter().chain(&locked.nydus).map(|image| &image.digest).collect();
        let mut plan = Self::default();
        let mut todo = vec![(root, 0)];
        while let Some((document, depth)) = todo.pop() {
            if !is_index(&document) {
                plan.manifest(document)?;
                continue;
            }
            if depth == DEPTH_LIMIT {
                return Err(SaveError::TooDeep(DEPTH_LIMIT));
            }
            let index: ImageIndex = parse(&document)?;
            plan.indexes.push(document);
            for entry in index.manifests() {
                let is_index = *entry.media_type() == MediaType::ImageIndex;
                if is_index || wanted.contains(&entry.digest()) {
                    todo.push((source.manifest(entry).await?, depth + 1));
                }
            }
        }
        let has = |digest| plan.manifests.iter().any(|manifest| manifest.descriptor.digest() == digest);
        match wanted.into_iter().find(|digest| !has(*digest)) {
            Some(digest) => Err(SaveError::NotInIndex(digest.clone())),
            None => Ok(plan),
        }
    }

    fn manifest(&mut self, document: Document) -> Result<(), SaveError> {
        let manifest: ImageManifest = parse(&document)?;
        for blob in [manifest.config()].into_iter().chain(manifest.layers()) {
            // Such layers are fetched from where they say, by whoever runs the image.
            let is_foreign = blob.urls().as_ref().is_some_and(|urls| !urls.is_empty());
            if !is_foreign && !self.blobs.iter().any(|other| other.digest() == blob.digest()) {
                self.blobs.push(blob.clone());
            }
        }
        self.manifests.push(document);
        Ok(())
    }

    /// What the image's name leads to.
    pub(crate) fn root(&self) -> Option<&Document> {
        self.indexes.first().or(self.manifests.first())
    }
}

fn parse<T: for<'a> Deserialize<'a>>(document: &Document) -> Result<T, SaveError> {
    let digest = || document.descriptor.digest().clone();
    serde_json::from_slice(&document.content).map_err(|error| SaveError::Document { digest: digest(), error })
}

fn is_index(document: &Document) -> bool {
    #[derive(Deserialize)]
    struct Shape {
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_slice(&document.content)
        .is_ok_and(|shape: Shape| shape.manifests.is_some() && shape.layers.is_none())
}
