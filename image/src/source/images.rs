//! The images of an index: one a platform.

use bytes::Bytes;
use registry::client::Descriptor;

use super::error::SourceError;
use super::{Document, Source};
use crate::document::{DEPTH_LIMIT, ImageConfig, Manifest, Parsed};
use crate::platform::{PlatformName, chosen, listed};

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
    /// (attestations, artifacts) is left out, and so are nydus images that stand next to plain ones.
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
        // All platforms that there are, those that nobody asked for as well, the last ones of an index first.
        let mut there = Vec::new();
        // Of what was read and is no image, the first.
        let mut what = None;
        let mut todo = vec![(root, 0)];
        while let Some((document, depth)) = todo.pop() {
            let index = match self.parse(&document)? {
                Parsed::Index(index) => index,
                // In an index nobody goes to the latter; who names it by its digest means it.
                Parsed::Manifest(manifest) if manifest.is_image() || manifest.is_beside_plain() => {
                    images.extend(self.image(document, manifest).await?);
                    continue;
                }
                other => {
                    what.get_or_insert_with(|| other.what());
                    continue;
                }
            };
            if depth == DEPTH_LIMIT {
                return Err(SourceError::TooDeep { source_name: self.name(), limit: DEPTH_LIMIT });
            }
            // The last one pushed is the next one taken.
            for (entry, _) in index.marked().rev().filter(|(_, is_nydus)| !is_nydus) {
                let named = entry.platform().as_ref().map(PlatformName::of);
                let fits = |named: &PlatformName| {
                    !named.is_unknown()
                        && (wanted.is_empty() || wanted.iter().any(|wanted| wanted.matches(named)))
                };
                if named.as_ref().is_none_or(fits) {
                    let Some(manifest) = self.manifest_if_there(entry).await? else { continue };
                    todo.push((manifest, depth + 1));
                }
                there.extend(named);
            }
        }
        let found: Vec<&PlatformName> = images.iter().map(|image: &SourceImage| &image.platform).collect();
        let mut chosen = match chosen(wanted, &found) {
            Ok(chosen) => chosen.into_iter(),
            Err(wanted) => {
                if let (Some(what), true) =
                    (what, there.iter().all(PlatformName::is_unknown) && found.is_empty())
                {
                    return Err(SourceError::NotAnImage { source_name: self.name(), what });
                }
                let found = listed(there.iter().rev().chain(found));
                let (source_name, wanted) = (self.name(), wanted.to_string());
                return Err(SourceError::NoSuchPlatform { source_name, wanted, found });
            }
        };
        images.retain(|_| chosen.next() == Some(true));
        Ok(images)
    }

    /// The image of a manifest; `None` if it is for no platform.
    async fn image(
        &self,
        document: Document,
        manifest: Manifest,
    ) -> Result<Option<SourceImage>, SourceError> {
        let named = document.descriptor.platform().as_ref().map(PlatformName::of);
        let platform = match named {
            Some(platform) => platform,
            None => self.platform_of(&manifest.config).await?,
        };
        Ok((!platform.is_unknown()).then(|| SourceImage {
            platform,
            config: manifest.config,
            layers: manifest.layers,
            manifest: document.content,
            descriptor: document.descriptor,
        }))
    }

    /// The platform that the config `descriptor` states.
    pub async fn platform_of(&self, descriptor: &Descriptor) -> Result<PlatformName, SourceError> {
        let content = self.document(descriptor).await?;
        let platform = ImageConfig::parse(&content).and_then(|config| config.platform());
        platform.map_err(|error| {
            SourceError::document(format!("{} of {}", descriptor.digest(), self.name()), error)
        })
    }

    /// Reads a document that this source gave.
    ///
    /// # Errors
    ///
    /// When it is no manifest or index; the error names it.
    pub fn parse(&self, document: &Document) -> Result<Parsed, SourceError> {
        Parsed::parse(&document.content).map_err(|error| {
            SourceError::document(format!("{} of {}", document.descriptor.digest(), self.name()), error)
        })
    }
}
