//! The nydus image of each image and platform: its layers' trees merged, and what names it.

use std::sync::Arc;

use futures::StreamExt as _;
use image::assemble::{Form, assemble};
use image::document::{DocumentError, ImageConfig, Manifest, MediaTypes};
use image::layer::ConvertedLayer;
use image::platform::PlatformName;
use registry::client::Descriptor;
use registry::{Digest, nydus};

use super::{Failures, Rafs};
use crate::save::plan::{PlannedLayer, RafsPlan};
use crate::save::{Done, SaveError, Saved};
use crate::saved::{BootstrapEntry, ImageEntry, read_layer};

/// A nydus image that is stored.
#[derive(Clone, Debug)]
pub(crate) struct NydusImage {
    pub(crate) platform: PlatformName,
    /// Digest and size in bytes of its manifest.
    pub(crate) manifest: Digest,
    pub(crate) size: u64,
    pub(crate) bootstrap: BootstrapEntry,
    config: Digest,
    /// Blobs and their sizes in bytes, the layers' own first.
    blobs: Vec<(Digest, u64)>,
}

impl NydusImage {
    /// All blobs that its manifest names.
    pub(crate) fn parts(&self) -> Vec<Digest> {
        let blobs = self.blobs.iter().map(|(blob, _)| blob);
        blobs.chain([&self.bootstrap.digest, &self.config]).cloned().collect()
    }

    /// The bytes of these, each once.
    pub(crate) fn bytes(&self) -> u64 {
        let mut seen = std::collections::HashSet::new();
        let blobs = self.blobs.iter().filter(|(blob, _)| seen.insert(blob));
        blobs.map(|(_, size)| size).sum::<u64>() + self.bootstrap.size
    }

    /// Its line of the table; `layers` are the image's.
    pub(super) fn entry(&self, layers: &[PlannedLayer]) -> ImageEntry {
        let chain = layers.last().map_or_else(|| self.manifest.clone(), |top| top.chain.clone());
        let blobs = self.blobs.iter().map(|(blob, _)| blob.clone()).collect();
        let (platform, manifest) = (self.platform.clone(), self.manifest.clone());
        ImageEntry { platform, chain, manifest, size: self.size, blobs }
    }
}

impl Rafs {
    /// The nydus images of all of `images`, whose layers are stored; calls `done` for each that is whole.
    pub(super) async fn assemble_all(
        &self,
        images: &[Saved],
        fetched: &[u64],
        done: &Done<'_>,
    ) -> Result<Vec<Vec<NydusImage>>, Failures> {
        let one = |(image, fetched): (&Saved, &u64)| {
            let (plans, mut report) = (image.plan.rafs.clone(), image.report());
            report.fetched += fetched;
            async move {
                let mut nydus = Vec::with_capacity(plans.len());
                for plan in &plans {
                    nydus.push(self.assemble_one(plan).await?);
                }
                if !nydus.is_empty() {
                    report.bytes += nydus.iter().map(NydusImage::bytes).sum::<u64>();
                    done(&report);
                }
                Ok::<_, SaveError>(nydus)
            }
        };
        let jobs: Vec<_> = images.iter().zip(fetched).map(one).collect();
        // A tree of each layer is in memory meanwhile.
        let results = futures::stream::iter(jobs).buffered(self.options.conversions.max(1));
        let results: Vec<Result<Vec<NydusImage>, SaveError>> = results.collect().await;
        let (mut all, mut failures) = (Vec::new(), Failures::new());
        for (number, result) in results.into_iter().enumerate() {
            match result {
                Ok(nydus) => all.push(nydus),
                Err(error) => drop(failures.insert(number, error)),
            }
        }
        if failures.is_empty() { Ok(all) } else { Err(failures) }
    }

    async fn assemble_one(&self, plan: &RafsPlan) -> Result<NydusImage, SaveError> {
        if let Some(nydus) = self.found(plan).await? {
            return Ok(nydus);
        }
        let mut layers = Vec::with_capacity(plan.layers.len());
        for layer in &plan.layers {
            let unknown = || SaveError::NotInIndex(layer.diff_id.clone());
            let entry = self.known.layer(&layer.diff_id).ok_or_else(unknown)?;
            let blob = self.known.blob(&entry.blob).ok_or_else(unknown)?;
            let tree = read_layer(&self.store, &entry.blob, blob).await?;
            let (digest, size) = (entry.blob.clone(), blob.size);
            layers.push(Arc::new(ConvertedLayer {
                layer: tree,
                digest,
                size,
                source: None,
                diff_id: None,
                toc: None,
            }));
        }
        let form = Form {
            media_types: MediaTypes::BesidePlain,
            annotations: vec![
                (nydus::ANNOTATION_FS_VERSION, nydus::FS_VERSION.to_owned()),
                (nydus::ANNOTATION_SOURCE_DIGEST, plan.manifest.descriptor.digest().to_string()),
            ],
        };
        let (manifest, config) = (&plan.manifest.content, &plan.config.content);
        let assembled =
            assemble(manifest, config, layers, &self.recipe, &form, self.destination.as_ref()).await?;
        let digest = assembled.digest.clone();
        self.describe(plan, &assembled.manifest, digest).await
    }

    /// The one that an earlier save made, if it is still what this one would be.
    async fn found(&self, plan: &RafsPlan) -> Result<Option<NydusImage>, SaveError> {
        let Some((entry, bootstrap)) = self.known.image(plan.manifest.descriptor.digest()) else {
            return Ok(None);
        };
        let own = plan.layers.iter().map(|layer| self.known.layer(&layer.diff_id).map(|layer| &layer.blob));
        if !own.zip(&entry.blobs).all(|(own, named)| own == Some(named))
            || !self.store.has_manifest(&entry.manifest).await?
            || !self.store.has(&bootstrap.digest).await?
        {
            return Ok(None);
        }
        let manifest = self.store.manifest(&entry.manifest, entry.size).await?;
        let found = self.describe(plan, &manifest, entry.manifest.clone()).await?;
        // Where what several saves made was united, its chain may have the bootstrap of another image.
        let is_whole =
            found.bootstrap == *bootstrap && found.blobs.iter().map(|(blob, _)| blob).eq(&entry.blobs);
        Ok(is_whole.then_some(found))
    }

    /// What its manifest, which is stored, says.
    async fn describe(
        &self,
        plan: &RafsPlan,
        manifest: &[u8],
        digest: Digest,
    ) -> Result<NydusImage, SaveError> {
        let broken = |error: DocumentError| SaveError::Document { digest: digest.clone(), error };
        let parsed = Manifest::parse(manifest).map_err(broken)?;
        let (bootstrap, blobs) =
            parsed.layers.split_last().ok_or(SaveError::Internal("a nydus image without layers"))?;
        let config = &parsed.config;
        let content = self.store.read(config.digest(), config.size()).await?;
        let diff_ids = ImageConfig::parse(&content).and_then(|config| config.diff_ids()).map_err(broken)?;
        let diff_id = diff_ids.last().ok_or(SaveError::Internal("a nydus image without diff ids"))?;
        let described = |blob: &Descriptor| (blob.digest().clone(), blob.size());
        Ok(NydusImage {
            platform: plan.platform.clone(),
            manifest: digest,
            size: manifest.len() as u64,
            bootstrap: BootstrapEntry {
                digest: bootstrap.digest().clone(),
                size: bootstrap.size(),
                diff_id: diff_id.clone(),
            },
            config: config.digest().clone(),
            blobs: blobs.iter().map(described).collect(),
        })
    }
}
