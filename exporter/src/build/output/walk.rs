//! What buildkitd's documents become: each as soon as it comes, attestations with what they are about.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use image::assemble::{Assembled, Form, NydusImage, assemble};
use image::document::{
    Attestation, DocumentShape, ImageConfig, Index, Manifest, MediaTypes, Rewritten, Stored, Subject,
    statement_about,
};
use image::layer::ConvertedLayer;
use registry::client::Descriptor;
use registry::digest::{self, Digest};
use registry::nydus;

use super::{Claim, DEPTH_LIMIT, Output, OutputError};
use crate::build::keys::{Beside, Images};

impl Output {
    /// All has come, with an OCI layout's `index.json` to say what is the image.
    pub(crate) async fn convert_from(&self, index_json: &[u8]) -> Result<(), OutputError> {
        let index = Index::parse(index_json).map_err(|error| self.document_error(error))?;
        for root in &index.manifests {
            self.convert_digest("manifest", root.digest(), 0).await?;
        }
        Ok(())
    }

    async fn convert_digest(
        &self,
        what: &'static str,
        digest: &Digest,
        depth: usize,
    ) -> Result<(), OutputError> {
        if self.received().stored.contains_key(digest) {
            return Ok(());
        }
        let content = self.document(what, digest).await?;
        Box::pin(self.convert_document(digest, &content, depth)).await
    }

    /// Stores what a document becomes, if it is a manifest or an index.
    pub(super) async fn convert_document(
        &self,
        digest: &Digest,
        content: &Bytes,
        depth: usize,
    ) -> Result<(), OutputError> {
        let stored = match DocumentShape::of(content).map_err(|error| self.document_error(error))? {
            DocumentShape::Index if depth > DEPTH_LIMIT => {
                let reason = format!("indexes are nested more than {DEPTH_LIMIT} deep");
                return Err(OutputError::Layout { reason });
            }
            DocumentShape::Index => self.convert_index(content, depth).await?,
            DocumentShape::Manifest => {
                let source = Manifest::parse(content).map_err(|error| self.document_error(error))?;
                if source.is_image() {
                    self.convert_image(&source, content).await?
                } else if Attestation::parse(content).map_err(|error| self.document_error(error))?.is_some() {
                    // It waits for its index, which says what it is about.
                    return Ok(());
                } else {
                    self.keep(&source, content).await?
                }
            }
            DocumentShape::Other => return Ok(()),
        };
        self.received().stored.insert(digest.clone(), stored);
        Ok(())
    }

    async fn convert_index(&self, content: &Bytes, depth: usize) -> Result<Stored, OutputError> {
        let source = Index::parse(content).map_err(|error| self.document_error(error))?;
        for manifest in &source.manifests {
            self.convert_digest("manifest", manifest.digest(), depth + 1).await?;
        }
        let mut attested = HashMap::new();
        for (attestation, about, platform) in source.attestations() {
            let stored = self.attest_all(&attestation, &about, platform).await?;
            attested.insert((attestation, about), stored);
        }
        let converted = {
            let mut received = self.received();
            received.named.extend(source.manifests.iter().map(|entry| entry.digest().clone()));
            source.convert_attested(&received.stored, &attested, self.attrs.oci_media_types)
        };
        match self.attrs.beside {
            // One that is merged into what a name has is nowhere itself.
            Beside::Named => Ok(converted),
            Beside::Nothing => self.put_index(converted).await,
            Beside::Own => {
                let plain = Index::parse(&converted.content).map_err(|error| self.document_error(error))?;
                let sources: Vec<Digest> =
                    source.manifests.iter().map(|manifest| manifest.digest().clone()).collect();
                self.put_index(self.with_nydus(&plain, &sources)).await
            }
        }
    }

    /// Stores the attestation `digest` of all that the manifest `about` became; returns the one for the place where that was.
    async fn attest_all(
        &self,
        digest: &Digest,
        about: &Digest,
        platform: Option<&serde_json::Value>,
    ) -> Result<Stored, OutputError> {
        let (stored, nydus) = {
            let received = self.received();
            let nydus = received.beside.get(about).map(|image| image.nydus.clone());
            (received.stored.get(about).cloned(), nydus)
        };
        let attested = self.attest(digest, about, stored.as_ref(), platform).await?;
        let Some(nydus) = nydus else { return Ok(attested) };
        // Beside the build's own plain image, that is what is in the place, and both are attested.
        let of_nydus = match stored {
            Some(stored) if stored.digest == nydus.digest => attested.clone(),
            _ => self.attest(digest, about, Some(&nydus), platform).await?,
        };
        if let Some(image) = self.received().beside.get_mut(about) {
            image.attested.push(of_nydus);
        }
        Ok(attested)
    }

    async fn convert_image(&self, source: &Manifest, content: &Bytes) -> Result<Stored, OutputError> {
        // One whose first file is a tar may have passed for a layer.
        if let Some(blob) = source.layers.iter().find(|layer| is_nydus_blob(layer)) {
            let (title, digest) = (self.title(), blob.digest().clone());
            return Err(OutputError::NoTar {
                title,
                digest,
                reason: format!("it is a {}", blob.media_type()),
            });
        }
        let config = self.document("image config", source.config.digest()).await?;
        let (flat, flat_config, layers) = self.parts(source, content, &config).await?;
        let task = self.task(format!("pushing bootstrap and manifest of {} layers", source.layers.len()), 0);
        let media_types = match (self.attrs.beside, self.attrs.oci_media_types) {
            (Beside::Named | Beside::Own, _) => MediaTypes::BesidePlain,
            (Beside::Nothing, true) => MediaTypes::Oci,
            (Beside::Nothing, false) => MediaTypes::Docker,
        };
        let form = Form { media_types, annotations: Vec::new() };
        let mut assembled = self.assemble(&flat, &flat_config, layers.clone(), &form).await?;
        task.finish();
        if self.attrs.images != Images::None {
            assembled = self.with_lock(&flat, &flat_config, layers, form, &assembled.digest).await?;
        }
        tracing::info!(build = self.build, image = self.title(), digest = %assembled.digest, "image assembled");
        let nydus = Stored::from(assembled);
        if self.attrs.beside == Beside::Nothing {
            return Ok(nydus);
        }
        let image = self.beside(&config, nydus.clone())?;
        self.received().beside.insert(digest::sha256(content), image);
        match self.attrs.beside {
            Beside::Own => self.store_plain(source, content, config).await,
            Beside::Nothing | Beside::Named => Ok(nydus),
        }
    }

    /// The layers with these digests, as converted.
    pub(super) async fn layers_of(
        &self,
        digests: &[&Digest],
    ) -> Result<Vec<Arc<ConvertedLayer>>, OutputError> {
        let mut layers = Vec::with_capacity(digests.len());
        for layer in digests {
            // A layer that came with an earlier manifest may not be announced again.
            let claim = self.claim(layer).await?;
            let here = matches!(claim, Claim::Here);
            let found = self.received().layers.get(*layer).cloned().filter(|_| here);
            layers.push(found.ok_or_else(|| self.missing("layer", layer))?);
        }
        Ok(layers)
    }

    /// The image `nydus`, whose source has this config, to stand beside a plain one.
    fn beside(&self, config: &[u8], nydus: Stored) -> Result<NydusImage, OutputError> {
        let wrong = |error| self.document_error(error);
        let config = ImageConfig::parse(config).map_err(wrong)?;
        let (platform, diff_ids) = (config.platform().map_err(wrong)?, config.diff_ids().map_err(wrong)?);
        Ok(NydusImage { platform, diff_ids, nydus, attested: Vec::new() })
    }

    pub(super) async fn assemble(
        &self,
        content: &[u8],
        config: &[u8],
        layers: Vec<Arc<ConvertedLayer>>,
        form: &Form,
    ) -> Result<Assembled, OutputError> {
        let destination = self.destination().await?.as_ref();
        let recipe = self.prepared().await?.image.recipe();
        let assembled = assemble(content, config, layers, recipe, form, destination).await;
        assembled.map_err(|error| OutputError::Assemble { title: self.title(), error: Box::new(error) })
    }

    /// Stores the attestation `digest` of `stored`, which is what the manifest `about` became.
    async fn attest(
        &self,
        digest: &Digest,
        about: &Digest,
        stored: Option<&Stored>,
        platform: Option<&serde_json::Value>,
    ) -> Result<Stored, OutputError> {
        let content = self.document("attestation", digest).await?;
        let attestation = Attestation::parse(&content).map_err(|error| self.document_error(error))?;
        let (Some(attestation), Some(stored)) = (attestation, stored) else {
            let source = Manifest::parse(&content).map_err(|error| self.document_error(error))?;
            return self.keep(&source, &content).await;
        };
        let names = self.attrs.package_urls(platform);
        let subject = Subject { source: about, stored, names: &names };
        let mut statements = Rewritten::new();
        for statement in &attestation.statements {
            statements.insert(statement.clone(), self.put_statement(statement, &subject).await?);
        }
        let config = self.document("blob", &attestation.config).await?;
        let attested =
            attestation.about(&subject, &config, &statements).map_err(|error| self.document_error(error))?;
        let put = self.destination().await?.put_blob(attested.config).await;
        put.map_err(|error| self.push_error("an attestation's config", error))?;
        let Stored { media_type, content, .. } = &attested.manifest;
        let put = self.destination().await?.put_manifest(media_type, content.clone()).await;
        put.map_err(|error| self.push_error("an attestation", error))?;
        Ok(attested.manifest)
    }

    /// Stores the statement `digest`, rewritten to be about `subject`; returns its digest and size then. It is in memory while it is
    /// rewritten and no longer, as little of all builds as the bound for that says.
    async fn put_statement(
        &self,
        digest: &Digest,
        subject: &Subject<'_>,
    ) -> Result<(Digest, u64), OutputError> {
        let (mut rewritten, new) = {
            let found = self.documents.find(digest).ok_or_else(|| self.missing("statement", digest))?;
            let size = found.lock().await.size();
            let _room = self.preparation.change_room.take(size).await;
            let content = self.document("statement", digest).await?;
            let content = statement_about(&content, subject).map_err(|error| self.document_error(error))?;
            let mut rewritten = self.begin_document();
            let written = rewritten.write(&content).await;
            written.map_err(|error| self.documents_error(digest, error))?;
            (rewritten, digest::sha256(&content))
        };
        let stored = rewritten.store(&new, self.destination().await?.as_ref()).await;
        stored.map_err(|error| self.documents_error(digest, error))?;
        Ok((new, rewritten.size()))
    }

    /// Stores an artifact as it is.
    async fn keep(&self, source: &Manifest, content: &Bytes) -> Result<Stored, OutputError> {
        for digest in source.blobs().map(|blob| blob.digest()) {
            let blob = self.documents.find(digest).ok_or_else(|| self.missing("blob", digest))?;
            let stored = blob.lock().await.store(digest, self.destination().await?.as_ref()).await;
            stored.map_err(|error| self.documents_error(digest, error))?;
        }
        let media_type = source.media_type().to_owned();
        let put = self.destination().await?.put_manifest(&media_type, content.clone()).await;
        let digest = put.map_err(|error| self.push_error("an artifact", error))?;
        Ok(Stored { media_type, content: content.clone(), digest })
    }
}

/// Whether a layer is a blob of chunks, and no tar.
fn is_nydus_blob(layer: &Descriptor) -> bool {
    layer.media_type().to_string() == nydus::MEDIA_TYPE_BLOB
}
