//! The images of an index: one a platform.

use bytes::Bytes;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;

use super::error::SourceError;
use super::{Document, Source};
use crate::platform::{PlatformName, chosen, listed};
use registry::media_types::DOCKER_CONFIG;
use registry::nydus::nydus_entries;

/// How deep indexes may lie in indexes.
const DEPTH_LIMIT: usize = 4;

/// A platform's image.
#[derive(Clone, Debug)]
pub struct SourceImage {
    /// What it is for.
    pub platform: PlatformName,
    /// Of its manifest.
    pub descriptor: Descriptor,
    /// Its manifest.
    pub manifest: Bytes,
    /// Of its config.
    pub config: Descriptor,
    /// Of its layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

impl Source {
    /// The images for each of the platforms in `wanted`, or all of them where that is empty. What is no image to be run
    /// (attestations, artifacts) is left out, and so are nydus images that stand beside plain ones.
    ///
    /// # Errors
    ///
    /// When something cannot be read, or there is no image for a platform.
    pub async fn images(&self, wanted: &[PlatformName]) -> Result<Vec<SourceImage>, SourceError> {
        self.images_in(self.root().await?, wanted).await
    }

    /// [`Source::images`], of `root`, which the image's name was found to lead to.
    ///
    /// # Errors
    ///
    /// When something cannot be read, or there is no image for a platform.
    pub async fn images_in(
        &self,
        root: Document,
        wanted: &[PlatformName],
    ) -> Result<Vec<SourceImage>, SourceError> {
        let mut images = Vec::new();
        // All platforms that there are, those that nobody asked for as well.
        let mut there = Vec::new();
        let mut todo = vec![(root, 0)];
        while let Some((document, depth)) = todo.pop() {
            if !is_index(&document) {
                images.extend(self.image(document).await?);
                continue;
            }
            if depth == DEPTH_LIMIT {
                return Err(SourceError::TooDeep { source_name: self.name(), limit: DEPTH_LIMIT });
            }
            let index: ImageIndex = self.parse(&document)?;
            // The last one pushed is the next one taken.
            let nydus = nydus_entries(&document.content).map_err(|error| self.wrong(&document, error))?;
            let plain = index.manifests().iter().zip(&nydus).filter(|(_, is_nydus)| !**is_nydus);
            there.extend(plain.filter_map(|(entry, _)| entry.platform().as_ref().map(PlatformName::of)));
            for (entry, is_nydus) in index.manifests().iter().zip(nydus).rev() {
                let named = entry.platform().as_ref().map(PlatformName::of);
                let fits = |named: &PlatformName| {
                    !named.is_unknown()
                        && (wanted.is_empty() || wanted.iter().any(|wanted| wanted.matches(named)))
                };
                if named.as_ref().is_none_or(fits) && !is_nydus {
                    todo.push((self.manifest(entry).await?, depth + 1));
                }
            }
        }
        let found: Vec<&PlatformName> = images.iter().map(|image: &SourceImage| &image.platform).collect();
        let mut chosen = match chosen(wanted, &found) {
            Ok(chosen) => chosen.into_iter(),
            Err(wanted) => {
                let found = listed(there.iter().chain(found));
                let (source_name, wanted) = (self.name(), wanted.to_string());
                return Err(SourceError::NoSuchPlatform { source_name, wanted, found });
            }
        };
        images.retain(|_| chosen.next() == Some(true));
        Ok(images)
    }

    /// The image of a manifest; `None` if it is of something else.
    async fn image(&self, document: Document) -> Result<Option<SourceImage>, SourceError> {
        let manifest: ImageManifest = self.parse(&document)?;
        let is_config = matches!(manifest.config().media_type(), MediaType::ImageConfig)
            || manifest.config().media_type().to_string() == DOCKER_CONFIG;
        if !is_config {
            return Ok(None);
        }
        let named = document.descriptor.platform().as_ref().map(PlatformName::of);
        let platform = match named {
            Some(platform) => platform,
            None => self.platform_of(manifest.config()).await?,
        };
        Ok((!platform.is_unknown()).then(|| SourceImage {
            platform,
            config: manifest.config().clone(),
            layers: manifest.layers().clone(),
            manifest: document.content,
            descriptor: document.descriptor,
        }))
    }

    /// The platform that the config `descriptor` states.
    pub async fn platform_of(&self, descriptor: &Descriptor) -> Result<PlatformName, SourceError> {
        let content = self.document(descriptor).await?;
        PlatformName::of_config(&content).map_err(|error| {
            SourceError::document(format!("image config {} of {}", descriptor.digest(), self.name()), error)
        })
    }

    fn parse<'a, T: Deserialize<'a>>(&self, document: &'a Document) -> Result<T, SourceError> {
        serde_json::from_slice(&document.content).map_err(|error| self.wrong(document, error))
    }

    fn wrong(&self, document: &Document, error: serde_json::Error) -> SourceError {
        SourceError::document(format!("manifest {} of {}", document.descriptor.digest(), self.name()), error)
    }
}

/// Whether this is an index, by what it says itself where its descriptor does not.
fn is_index(document: &Document) -> bool {
    #[derive(Deserialize)]
    struct Shape {
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
    }
    match document.descriptor.media_type() {
        MediaType::ImageIndex => true,
        MediaType::ImageManifest => false,
        _ => serde_json::from_slice(&document.content)
            .is_ok_and(|shape: Shape| shape.manifests.is_some() && shape.layers.is_none()),
    }
}
