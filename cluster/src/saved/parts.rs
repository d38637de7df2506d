//! All that saved images consist of, to be copied as it is: documents whole, blobs by what names them.

use futures::{StreamExt as _, TryStreamExt as _};
use image::document::Parsed;
use image::source::{Document, Source};
use registry::client::{Client, Descriptor};
use registry::{Reference, nydus};
use serde_json::Value;

use super::{ARTIFACT_TYPE, NAME, SavedError, SavedImages};

/// How many manifests are read at once.
const AT_ONCE: usize = 16;

/// What the name of saved images leads to.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    /// Where all of it is.
    pub(crate) source: Source,
    /// What names the others.
    pub(crate) index: Document,
    /// These, in the index's order.
    pub(crate) parts: Vec<SavedManifest>,
}

/// A manifest that the index names.
#[derive(Clone, Debug)]
pub(crate) struct SavedManifest {
    /// As the index names it.
    pub(crate) entry: Value,
    pub(crate) manifest: Document,
    /// All that it names.
    pub(crate) blobs: Vec<Descriptor>,
}

impl SavedManifest {
    /// Whether it is a nydus image, or names what is known of all images.
    pub(crate) fn is_ours(&self) -> bool {
        [ARTIFACT_TYPE, nydus::ARTIFACT_TYPE_MANIFEST].iter().any(|kind| self.entry["artifactType"] == **kind)
    }

    /// Whether it is a nydus image of the image with this name.
    pub(crate) fn is_nydus_of(&self, image: &Reference) -> bool {
        self.entry["artifactType"] == nydus::ARTIFACT_TYPE_MANIFEST
            && self.entry["annotations"][NAME] == image.to_string()
    }
}

impl SavedImages {
    /// All that these images consist of.
    pub(crate) async fn parts(&self, client: &Client) -> Result<Parts, SavedError> {
        let source = self.source(client).await?;
        let index = source.root().await?;
        let broken = |reason: String| SavedError::Other { place: source.name(), reason };
        let named: Value =
            serde_json::from_slice(&index.content).map_err(|error| broken(error.to_string()))?;
        let entries = named["manifests"].as_array().cloned().unwrap_or_default();
        let read = async |entry: Value| {
            let descriptor: Descriptor =
                serde_json::from_value(entry.clone()).map_err(|error| broken(error.to_string()))?;
            let manifest = source.manifest(&descriptor).await?;
            let blobs = match source.parse(&manifest)? {
                Parsed::Manifest(manifest) => manifest.blobs().cloned().collect(),
                Parsed::Artifact(artifact) => artifact.blobs,
                Parsed::Index(_) => return Err(broken(format!("{} is an index", descriptor.digest()))),
            };
            Ok(SavedManifest { entry, manifest, blobs })
        };
        let parts: Vec<_> = entries.into_iter().map(read).collect();
        let parts = futures::stream::iter(parts).buffered(AT_ONCE).try_collect().await?;
        Ok(Parts { source, index, parts })
    }
}
