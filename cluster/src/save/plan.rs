//! What an image of the lock is made of.

use image::document::{DEPTH_LIMIT, DocumentError, ImageConfig, Manifest, Parsed};
use image::platform::PlatformName;
use image::source::{Document, Source};
use registry::Digest;
use registry::client::Descriptor;
use registry::digest::sha256;
use registry::media_types::{DOCKER_INDEX, OCI_INDEX};

use super::{Forms, SaveError};
use crate::lock::{Locked, PlatformImage};

/// The documents and blobs of an image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// Indexes, the outermost first. None where the name leads to a manifest.
    pub(crate) indexes: Vec<Document>,
    /// The manifests that the lock names.
    pub(crate) manifests: Vec<Document>,
    /// The configs of these.
    pub(crate) configs: Vec<Descriptor>,
    /// Those of the manifests that are saved as they are, layers and all.
    pub(crate) plain: Vec<Document>,
    /// The configs and layers of these, each once.
    pub(crate) blobs: Vec<Descriptor>,
    /// Those of the manifests that are saved as RAFS.
    pub(crate) rafs: Vec<RafsPlan>,
}

/// An image of one platform that is saved as RAFS.
#[derive(Clone, Debug)]
pub(crate) struct RafsPlan {
    pub(crate) manifest: Document,
    pub(crate) config: Document,
    pub(crate) platform: PlatformName,
    /// The lowest first.
    pub(crate) layers: Vec<PlannedLayer>,
}

/// A layer of it.
#[derive(Clone, Debug)]
pub(crate) struct PlannedLayer {
    pub(crate) descriptor: Descriptor,
    pub(crate) diff_id: Digest,
    /// Of the chain that it is the top of.
    pub(crate) chain: Digest,
}

impl Plan {
    /// Reads the documents of `locked`.
    pub(crate) async fn of(locked: &Locked, source: &Source, forms: Forms) -> Result<Self, SaveError> {
        let root = source.root().await?;
        if *root.descriptor.digest() != locked.digest {
            let found = root.descriptor.digest().clone();
            return Err(SaveError::Moved { locked: locked.digest.clone(), found });
        }
        let mut plan = Self::default();
        let wanted = |digest: &Digest| locked.platforms.iter().any(|image| image.digest == *digest);
        let others = plan.add(root, wanted, source, forms).await?;
        // Nodes read what is made of the plain image; whoever wants images as they are may want all that there is.
        let is_made = |digest: &Digest| !forms.plain && plan.rafs.iter().any(|rafs| rafs.is_of(digest));
        let nydus: Vec<&PlatformImage> = locked.own_nydus(is_made).collect();
        for entry in others.iter().filter(|entry| nydus.iter().any(|image| image.digest == *entry.digest())) {
            plan.add(source.manifest(entry).await?, |_| false, source, forms).await?;
        }
        let has = |digest| plan.manifests.iter().any(|manifest| manifest.descriptor.digest() == digest);
        let mut all = locked.platforms.iter().chain(nydus).map(|image| &image.digest);
        match all.find(|digest| !has(*digest)) {
            Some(digest) => Err(SaveError::NotInIndex(digest.clone())),
            None => Ok(plan),
        }
    }

    /// Adds a manifest, or an index and those of its manifests that are wanted; returns what it names besides.
    async fn add(
        &mut self,
        document: Document,
        wanted: impl Fn(&Digest) -> bool,
        source: &Source,
        forms: Forms,
    ) -> Result<Vec<Descriptor>, SaveError> {
        let mut others = Vec::new();
        let mut todo = vec![(document, 0)];
        while let Some((document, depth)) = todo.pop() {
            let index = match source.parse(&document)? {
                Parsed::Index(index) => index,
                Parsed::Manifest(manifest) => {
                    self.add_manifest(document, manifest, source, forms).await?;
                    continue;
                }
                Parsed::Artifact(artifact) => {
                    let digest = document.descriptor.digest().clone();
                    return Err(SaveError::NoImage { digest, reason: format!("it is {}", artifact.what()) });
                }
            };
            if depth == DEPTH_LIMIT {
                return Err(SaveError::TooDeep(DEPTH_LIMIT));
            }
            self.indexes.push(document);
            for entry in &index.manifests {
                let is_index = [OCI_INDEX, DOCKER_INDEX].contains(&entry.media_type().as_ref());
                if is_index || wanted(entry.digest()) {
                    todo.push((source.manifest(entry).await?, depth + 1));
                } else {
                    others.push(entry.clone());
                }
            }
        }
        Ok(others)
    }

    async fn add_manifest(
        &mut self,
        document: Document,
        manifest: Manifest,
        source: &Source,
        forms: Forms,
    ) -> Result<(), SaveError> {
        let rafs = if forms.rafs { RafsPlan::of(&document, &manifest, source).await? } else { None };
        if forms.plain || rafs.is_none() {
            for blob in [&manifest.config].into_iter().chain(&manifest.layers) {
                if !is_foreign(blob) && !self.blobs.iter().any(|other| other.digest() == blob.digest()) {
                    self.blobs.push(blob.clone());
                }
            }
            self.plain.push(document.clone());
        }
        self.configs.push(manifest.config);
        self.rafs.extend(rafs);
        self.manifests.push(document);
        Ok(())
    }

    /// What the image's name leads to.
    pub(crate) fn root(&self) -> Option<&Document> {
        self.indexes.first().or(self.manifests.first())
    }
}

impl RafsPlan {
    fn is_of(&self, manifest: &Digest) -> bool {
        self.manifest.descriptor.digest() == manifest
    }

    /// `None` for what is kept as it is: artifacts, nydus images, images of other systems than Linux or without layers.
    async fn of(
        document: &Document,
        manifest: &Manifest,
        source: &Source,
    ) -> Result<Option<Self>, SaveError> {
        let digest = || document.descriptor.digest().clone();
        let wrong = |error: DocumentError| SaveError::NoImage { digest: digest(), reason: error.to_string() };
        let layers = &manifest.layers;
        if !manifest.is_image() || manifest.nydus_layer().is_some() || layers.iter().any(is_foreign) {
            return Ok(None);
        }
        let content = source.document(&manifest.config).await?;
        let parsed = ImageConfig::parse(&content).map_err(wrong)?;
        let platform = parsed.platform().map_err(wrong)?;
        if platform.os() != "linux" || layers.is_empty() {
            return Ok(None);
        }
        let config = Document { descriptor: manifest.config.clone(), content };
        let diff_ids = parsed.diff_ids().map_err(wrong)?;
        if diff_ids.len() != layers.len() {
            let (found, expected) = (diff_ids.len(), layers.len());
            let reason = format!("its config has {found} diff ids for {expected} layers");
            return Err(SaveError::NoImage { digest: digest(), reason });
        }
        if let Some(diff_id) = diff_ids.iter().find(|diff_id| diff_id.algorithm().as_ref() != "sha256") {
            let reason = format!("diff id {diff_id}: expected a digest by sha256");
            return Err(SaveError::NoImage { digest: digest(), reason });
        }
        let mut planned: Vec<PlannedLayer> = Vec::with_capacity(layers.len());
        for (layer, diff_id) in layers.iter().zip(diff_ids) {
            let chain = match planned.last() {
                None => diff_id.clone(),
                Some(below) => sha256(format!("{} {diff_id}", below.chain).as_bytes()),
            };
            planned.push(PlannedLayer { descriptor: layer.clone(), diff_id, chain });
        }
        Ok(Some(Self { manifest: document.clone(), config, platform, layers: planned }))
    }
}

/// Such layers are fetched from where they say, by whoever runs the image.
fn is_foreign(blob: &Descriptor) -> bool {
    blob.urls().as_ref().is_some_and(|urls| !urls.is_empty())
}
