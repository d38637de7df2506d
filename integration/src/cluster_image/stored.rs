//! What a cluster image and its container images are in the registry.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{ClusterImage, Pull, Services, second};

impl ClusterImage {
    /// Bytes of all blobs of the cluster image and of the images that it needs, as they are or as they were saved; what they share is
    /// counted once. The cluster image itself is the nydus image in both cases.
    pub fn stored_bytes(&self, services: Services, pull: Pull) -> Result<u64> {
        let image = services.image().to_owned();
        match pull {
            Pull::Lazy => self.bytes([image, services.saved()]),
            Pull::Plain => self.bytes(services.images().map(|(_, image)| image.to_owned()).chain([image])),
        }
    }

    /// The same of so many versions, 1 or 2, with the cluster image as a plain image with plain container images.
    pub fn stored_bytes_of_versions(&self, services: Services, pull: Pull, versions: usize) -> Result<u64> {
        let lazy = [
            [services.image().to_owned(), services.saved()],
            [services.second_image(), services.second_saved()],
        ];
        let first = services.images().map(|(_, image)| image.to_owned()).chain([services.plain()]);
        let second =
            services.second_images().map(|(_, image)| image.into_owned()).chain([services.second_plain()]);
        match pull {
            Pull::Lazy => self.bytes(lazy.into_iter().take(versions).flatten()),
            Pull::Plain => self.bytes(first.chain(second.take(if versions > 1 { usize::MAX } else { 0 }))),
        }
    }

    /// Bytes of all blobs of these images: what a node fetches that pulls them whole. What they share is counted once.
    pub fn images_bytes(&self, images: &[String]) -> Result<u64> {
        self.bytes(images.iter().cloned())
    }

    fn bytes(&self, images: impl IntoIterator<Item = String>) -> Result<u64> {
        let mut blobs = BTreeMap::new();
        for image in images {
            self.add(&self.digest(&image)?, &mut blobs).with_context(|| format!("the blobs of {image}"))?;
        }
        Ok(blobs.values().sum())
    }

    /// The digests of all blobs and documents that the container images were saved as, without those of the cluster image: what
    /// they share with its root file system is read for that as well.
    pub fn saved_blobs(&self, services: Services) -> Result<BTreeSet<String>> {
        let (mut blobs, mut own) = (BTreeMap::new(), BTreeMap::new());
        self.add(&self.digest(&services.saved())?, &mut blobs)?;
        self.add(&self.digest(services.image())?, &mut own)?;
        Ok(blobs.into_keys().filter(|digest| !own.contains_key(digest)).collect())
    }

    /// The digests of blobs that the services' images need and no other container image does, as they are pulled so.
    pub fn blobs_of_services(&self, services: Services, pull: Pull) -> Result<BTreeSet<String>> {
        let images: Vec<(String, String)> = match pull {
            Pull::Lazy => self.saved_images(services)?,
            Pull::Plain => {
                let named = services.images().map(|(_, image)| Ok((image.to_owned(), self.digest(image)?)));
                named.collect::<Result<_>>()?
            }
        };
        let (mut own, mut others) = (BTreeMap::new(), BTreeMap::new());
        for (image, digest) in images {
            let is_service = image.starts_with(second::REBUILT);
            self.add(&digest, if is_service { &mut own } else { &mut others })?;
        }
        Ok(own.into_keys().filter(|digest| !others.contains_key(digest)).collect())
    }

    /// The container images that were saved: their names, and the digests of what they were saved as.
    fn saved_images(&self, services: Services) -> Result<Vec<(String, String)>> {
        let index = fs::read(blob(self.storage.root(), &self.digest(&services.saved())?))?;
        let index: Value = serde_json::from_slice(&index)?;
        let entries = index["manifests"].as_array().context("what was saved is under no index")?.iter();
        let named = entries.filter_map(|entry| {
            let name = entry["annotations"]["org.opencontainers.image.ref.name"].as_str()?;
            Some((name.to_owned(), entry["digest"].as_str()?.to_owned()))
        });
        Ok(named.collect())
    }

    /// The digests of all blobs and documents of the container images as they are.
    pub fn blobs(&self, services: Services) -> Result<BTreeSet<String>> {
        let mut blobs = BTreeMap::new();
        for (_, image) in services.images() {
            self.add(&self.digest(image)?, &mut blobs)?;
        }
        Ok(blobs.into_keys().collect())
    }

    /// The files of all layers of the container images as they are, each once.
    pub fn layers(&self, services: Services) -> Result<BTreeSet<PathBuf>> {
        let mut layers = BTreeSet::new();
        for (_, image) in services.images() {
            let manifest: Value =
                serde_json::from_slice(&fs::read(blob(self.storage.root(), &self.digest(image)?))?)?;
            let named = manifest["layers"].as_array().with_context(|| format!("{image} has no layers"))?;
            let digests = named.iter().filter_map(|layer| layer["digest"].as_str());
            layers.extend(digests.map(|digest| blob(self.storage.root(), digest)));
        }
        Ok(layers)
    }

    /// What the tag of an image names.
    pub fn digest(&self, image: &str) -> Result<String> {
        let (repository, tag) = image.rsplit_once(':').context("an image without tag")?;
        let tag = format!("docker/registry/v2/repositories/{repository}/_manifests/tags/{tag}/current/link");
        let digest = fs::read_to_string(self.storage.root().join(&tag)).with_context(|| tag.clone())?;
        Ok(digest.trim().to_owned())
    }

    /// Adds a manifest or an index, and what it names.
    fn add(&self, digest: &str, blobs: &mut BTreeMap<String, u64>) -> Result<()> {
        let text = fs::read(blob(self.storage.root(), digest))?;
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
