//! The nydus image that a source leads to.

use registry::client::Descriptor;
use registry::nydus;

use super::Source;
use super::error::SourceError;
use crate::document::{Manifest, Parsed};
use crate::platform::{PlatformName, listed};

impl Source {
    /// The manifest of the nydus image that this leads to, by way of an index if it is one: of several for the platform the one that suits
    /// it best.
    ///
    /// # Errors
    ///
    /// When something cannot be read, or there is no nydus image for the platform.
    pub async fn nydus_manifest(&self, wanted: &PlatformName) -> Result<Manifest, SourceError> {
        let root = self.root().await?;
        let no_nydus_image = |what: String| SourceError::NoNydusImage { source_name: self.name(), what };
        let index = match self.parse(&root)? {
            Parsed::Manifest(manifest) if manifest.bootstrap().is_some() => return Ok(manifest),
            Parsed::Manifest(manifest) => {
                let annotation = nydus::ANNOTATION_BOOTSTRAP;
                let what = manifest.what();
                return Err(no_nydus_image(format!(
                    "{what} without a layer that has the annotation {annotation}"
                )));
            }
            Parsed::Artifact(artifact) => return Err(no_nydus_image(artifact.what())),
            Parsed::Index(index) => index,
        };
        let named = |entry: &Descriptor| entry.platform().as_ref().map(PlatformName::of);
        // Entries that name no platform may be for any, and come last.
        let rank = |entry: &Descriptor| named(entry).map_or(Some(usize::MAX), |named| wanted.rank(&named));
        let candidates = index.manifests.iter().filter_map(|entry| Some((rank(entry)?, entry)));
        let mut candidates: Vec<_> = candidates.collect();
        candidates.sort_by_key(|(rank, _)| *rank);
        for (_, entry) in candidates {
            if let Parsed::Manifest(manifest) = self.parse(&self.manifest(entry).await?)?
                && manifest.bootstrap().is_some()
            {
                return Ok(manifest);
            }
        }
        let there: Vec<PlatformName> = index.manifests.iter().filter_map(named).collect();
        let there = listed(&there);
        Err(no_nydus_image(format!("an index without one for {wanted}, but with images for {there}")))
    }
}
