//! What a cluster image and its container images are in the registry.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{ClusterImage, Pull, Services};

impl ClusterImage {
    /// Bytes of all blobs of the cluster image and of the images that it needs, as they are or as they were saved; what they share is
    /// counted once.
    pub fn stored_bytes(&self, services: Services, pull: Pull) -> Result<u64> {
        let saved = services.saved();
        let images: Vec<&str> = match pull {
            Pull::Lazy => vec![services.image(), &saved],
            Pull::Plain => services.images().map(|(_, image)| image).chain([services.image()]).collect(),
        };
        let mut blobs = BTreeMap::new();
        for image in images {
            self.add(&self.digest(image)?, &mut blobs).with_context(|| format!("the blobs of {image}"))?;
        }
        Ok(blobs.values().sum())
    }

    /// Bytes of all blobs of these images: what a node fetches that pulls them whole. What they share is counted once.
    pub fn images_bytes(&self, images: &[String]) -> Result<u64> {
        let mut blobs = BTreeMap::new();
        for image in images {
            self.add(&self.digest(image)?, &mut blobs)?;
        }
        Ok(blobs.values().sum())
    }

    /// The digests of all blobs and documents that the container images were saved as.
    pub fn saved_blobs(&self, services: Services) -> Result<BTreeSet<String>> {
        let mut blobs = BTreeMap::new();
        self.add(&self.digest(&services.saved())?, &mut blobs)?;
        Ok(blobs.into_keys().collect())
    }

    /// What the tag of an image names.
    pub fn digest(&self, image: &str) -> Result<String> {
        let (repository, tag) = image.rsplit_once(':').context("an image without tag")?;
        let tag = format!("docker/registry/v2/repositories/{repository}/_manifests/tags/{tag}/current/link");
        let digest = fs::read_to_string(self.storage.join(&tag)).with_context(|| tag.clone())?;
        Ok(digest.trim().to_owned())
    }

    /// Adds a manifest or an index, and what it names.
    fn add(&self, digest: &str, blobs: &mut BTreeMap<String, u64>) -> Result<()> {
        let text = fs::read(blob(&self.storage, digest))?;
        blobs.insert(digest.to_owned(), text.len() as u64);
        let document: Value = serde_json::from_slice(&text)?;
        let list = |name: &str| document[name].as_array().cloned().unwrap_or_default();
        for manifest in list("manifests") {
            self.add(manifest["digest"].as_str().context("a manifest without digest")?, blobs)?;
        }
        for named in list("layers").iter().chain([&document["config"]]).filter(|named| named.is_object()) {
            let digest = named["digest"].as_str().context("a blob without digest")?;
            blobs.insert(digest.to_owned(), named["size"].as_u64().context("a blob without size")?);
        }
        Ok(())
    }
}

fn blob(storage: &Path, digest: &str) -> PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    storage.join("docker/registry/v2/blobs/sha256").join(&hex[..2.min(hex.len())]).join(hex).join("data")
}
