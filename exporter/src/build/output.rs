//! What has come for one output of a build, and what is made of it.
//!
//! Layers are converted as they come. A manifest is converted as soon as it comes, its layers being here by then, so that
//! buildkitd still waits and an error fails its own export step. What is left for the end is the name.

mod flattened;
mod locked;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use image::platform::PlatformName;
use registry::digest::{self, Digest};
use registry::reference::Reference;
use tokio::sync::OnceCell;

use super::documents::{Document, Documents, DocumentsError};
use super::images::ImagesError;
use super::keys::{Attrs, Images, Receiver};
use super::prepared::{Preparation, PrepareError, Prepared};
use super::target::{Target, TargetError};
use crate::metrics::Tally;
use cluster::ClusterConfig;
use cluster::lock::Lock;
use image::assemble::{AssembleError, Assembled, Form, MergeError, NydusImage, assemble, merge};
use image::describe;
use image::destination::{Destination, SpoolSpace, StoreError};
use image::document::{
    Attestation, DocumentError, Index, Manifest, MediaTypes, Stored, Subject, diff_ids, parse,
};
use image::layer::{Claimed, ConvertError, ConvertedLayer, Flight, LayerConversion, Present, ReadConversion};
use image::progress::{Progress, Task};

/// How deep indexes may lie in indexes.
const DEPTH_LIMIT: usize = 4;

/// How buildkitd hands over the result.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    /// Blob by blob into the session's content store.
    Store,
    /// As a tar stream of an OCI layout.
    Tar,
}

/// Why an output fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    #[error("{title}: layer {digest}: {}", describe(error.as_ref()))]
    Layer { title: String, digest: Digest, error: Box<ConvertError> },
    #[error("blob {digest} from buildkitd {reason}")]
    Blob { digest: Digest, reason: String },
    #[error("OCI layout from buildkitd: {reason}")]
    Layout { reason: String },
    #[error("document {digest} from buildkitd: {error}")]
    Documents { digest: Digest, error: DocumentsError },
    #[error("{title}: {what} {digest} did not come from buildkitd before what names it")]
    Missing { title: String, what: &'static str, digest: Digest },
    #[error("{title}: {}", describe(error.as_ref()))]
    Prepare { title: String, error: Box<PrepareError> },
    #[error("{title}: cannot flatten the layers: {}", describe(error.as_ref()))]
    Flatten { title: String, error: Box<ConvertError> },
    #[error("{title}: {}", describe(error.as_ref()))]
    Assemble { title: String, error: Box<AssembleError> },
    #[error("{title}: cannot push {what}: {}", describe(error.as_ref()))]
    Push { title: String, what: String, error: Box<StoreError> },
    #[error("{title}: cannot push: {}", describe(error.as_ref()))]
    Target { title: String, error: Box<TargetError> },
    #[error("{title}: {error}")]
    Images { title: String, error: Box<ImagesError> },
    #[error("{title}: {error}")]
    Document { title: String, error: DocumentError },
    #[error(
        "{title}: merge-manifest: {error}; push the plain image in the same build (one more --output \
         type=image,push=true with this name), or before"
    )]
    Merge { title: String, error: Box<MergeError> },
    #[error("{title}: buildkitd reported success but handed over no image")]
    NoImage { title: String },
}

/// What there is of a layer.
#[derive(Debug)]
pub(crate) enum Claim {
    /// It is converted and stored.
    Here,
    /// It has to be converted, unless it turns out to be none.
    Absent(Option<Flight>),
}

/// One output of ours.
pub(crate) struct Output {
    index: usize,
    way: Way,
    attrs: Attrs,
    target: Target,
    preparation: Preparation,
    prepared: OnceCell<Prepared>,
    /// What is at its names already, as far as that is to be believed.
    present: Present,
    cluster: ClusterConfig,
    progress: Arc<Progress>,
    documents: Documents,
    received: Mutex<Received>,
}

/// What has come, and what was made of it.
#[derive(Debug, Default)]
struct Received {
    /// Blobs being written.
    writing: HashSet<Digest>,
    /// Converted layers by the digest of their source.
    layers: HashMap<Digest, Arc<ConvertedLayer>>,
    /// Stored manifests and indexes by the digest of their source.
    stored: HashMap<Digest, Stored>,
    /// Manifests that an index names.
    named: HashSet<Digest>,
    /// Images that are to stand beside plain ones, by the digest of their source.
    beside: HashMap<Digest, NydusImage>,
    /// Layers that were converted for this output, and the bytes of their blobs.
    converted: (u64, u64),
    /// Which container images are asked for, one lock a platform.
    locks: Vec<Lock>,
}

/// Known by its place and image.
impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("index", &self.index)
            .field("title", &self.title())
            .finish_non_exhaustive()
    }
}

impl Output {
    /// An output to which nothing has come.
    pub(crate) fn new(
        index: usize,
        way: Way,
        attrs: Attrs,
        target: Target,
        preparation: Preparation,
        cluster: ClusterConfig,
        progress: Arc<Progress>,
    ) -> Self {
        let (documents, received) = (Documents::default(), Mutex::default());
        let (prepared, present) = (OnceCell::new(), Present::default());
        Self {
            index,
            way,
            attrs,
            target,
            preparation,
            prepared,
            present,
            cluster,
            progress,
            documents,
            received,
        }
    }

    /// The same, which uses again what is at its names already.
    pub(crate) fn reusing(self) -> Self {
        let names = match self.attrs.push && !self.attrs.push_by_digest {
            true => self.attrs.names.clone(),
            false => Vec::new(),
        };
        Self { present: Present::new(names), ..self }
    }

    /// Its place among the build's outputs.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Whether the result comes blob by blob.
    pub(crate) fn takes_blobs(&self) -> bool {
        self.way == Way::Store
    }

    /// What to call the image.
    pub(crate) fn title(&self) -> String {
        self.attrs.title()
    }

    /// Whether it goes to a directory of the client's, of which the client writes the index by our answer.
    pub(crate) fn is_client_store(&self) -> bool {
        self.attrs.receiver == Receiver::ClientStore
    }

    /// The names that it gets, given its digest.
    pub(crate) fn names(&self, digest: &Digest) -> Vec<String> {
        self.attrs.names_of(digest)
    }

    /// Begins to report a part of the export.
    pub(crate) fn task(&self, name: String, total: u64) -> Task {
        self.progress.task(self.index, name, total)
    }

    /// Where everything goes.
    pub(crate) async fn destination(&self) -> Result<&Arc<dyn Destination>, OutputError> {
        let destination = self.target.destination().await;
        destination.map_err(|error| OutputError::Target { title: self.title(), error: Box::new(error) })
    }

    /// What came so far.
    pub(crate) fn tally(&self) -> Tally {
        let received = self.received();
        let (converted, bytes) = received.converted;
        Tally { layers: received.layers.len() as u64, converted, bytes }
    }

    /// What converts its layers.
    async fn prepared(&self) -> Result<&Prepared, OutputError> {
        let (options, spool_dir) = (&self.attrs.options, self.target.spool_dir().to_owned());
        // Layers are converted ahead without a word to the registry: it is found out only for what is needed from there.
        let destination = match options.chunk_dict {
            Some(_) => Some(self.destination().await?.as_ref()),
            None => None,
        };
        let prepare = || self.preparation.prepare(options, destination, spool_dir);
        let prepared = self.prepared.get_or_try_init(prepare).await;
        prepared.map_err(|error| OutputError::Prepare { title: self.title(), error: Box::new(error) })
    }

    fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps others from writing the same blob; `None` if another does.
    pub(crate) fn lock(&self, digest: &Digest) -> Option<BlobLock<'_>> {
        self.received()
            .writing
            .insert(digest.clone())
            .then(|| BlobLock { output: self, digest: digest.clone() })
    }

    /// What there is of the layer `digest`: here, now or from an earlier build, or still to be converted, by this output alone
    /// of all that want it. Waits while another converts it.
    pub(crate) async fn claim(&self, digest: &Digest) -> Result<Claim, OutputError> {
        if self.received().layers.contains_key(digest) {
            return Ok(Claim::Here);
        }
        let Some(remembering) = self.remembering().await? else { return Ok(Claim::Absent(None)) };
        let destination = self.destination().await?;
        let claimed = remembering.claim(digest, &self.present, destination.as_ref()).await;
        match claimed.map_err(|error| self.push_error("a blob", error))? {
            Claimed::Absent(flight) => Ok(Claim::Absent(flight)),
            Claimed::Known(layer) => {
                self.task(format!("reusing {}", crate::intake::ingest::short(digest)), 0).finish();
                self.received().layers.insert(digest.clone(), layer);
                Ok(Claim::Here)
            }
        }
    }

    /// Begins to convert the layer `digest`.
    pub(crate) async fn convert(&self, digest: &Digest) -> Result<LayerConversion, OutputError> {
        tracing::debug!(image = self.title(), layer = %digest, "conversion begins");
        Ok(self.prepared().await?.layer.convert(&self.layer_destination().await?))
    }

    /// Begins to convert the layer that `input` is.
    pub(crate) async fn convert_read<R: Read + Send + 'static>(
        &self,
        input: R,
    ) -> Result<ReadConversion<R>, OutputError> {
        Ok(self.prepared().await?.layer.convert_read(input, &self.layer_destination().await?))
    }

    /// Begins to convert what may be a layer of this output; what is made of it stays in `space`.
    pub(crate) async fn convert_ahead<R: Read + Send + 'static>(
        &self,
        input: R,
        space: &Arc<SpoolSpace>,
    ) -> Result<ReadConversion<R>, OutputError> {
        Ok(self.prepared().await?.layer.convert_ahead(input, space))
    }

    /// A layer is converted and its blob stored: those who wait for `flight` get it as well.
    pub(crate) async fn add_layer(
        &self,
        digest: &Digest,
        layer: ConvertedLayer,
        flight: Option<Flight>,
    ) -> Result<(), OutputError> {
        tracing::info!(image = self.title(), layer = %digest, blob = %layer.digest, size = layer.size, "layer converted");
        let layer = Arc::new(layer.made_of(digest));
        if let Some(remembering) = self.remembering().await? {
            remembering.remember(&layer, flight, self.destination().await?.as_ref());
        }
        let mut received = self.received();
        received.converted.0 += 1;
        received.converted.1 += layer.size;
        received.layers.insert(digest.clone(), layer);
        Ok(())
    }

    /// The error for a layer that was not.
    pub(crate) fn layer_error(&self, digest: &Digest, error: ConvertError) -> OutputError {
        OutputError::Layer { title: self.title(), digest: digest.clone(), error: Box::new(error) }
    }

    fn push_error(&self, what: impl Into<String>, error: impl Into<StoreError>) -> OutputError {
        OutputError::Push { title: self.title(), what: what.into(), error: Box::new(error.into()) }
    }

    fn document_error(&self, error: DocumentError) -> OutputError {
        OutputError::Document { title: self.title(), error }
    }

    /// Begins to take a document.
    pub(crate) fn begin_document(&self) -> Document {
        Document::new(self.target.spool_dir())
    }

    /// The error for a document that cannot be kept.
    pub(crate) fn documents_error(&self, digest: &Digest, error: DocumentsError) -> OutputError {
        OutputError::Documents { digest: digest.clone(), error }
    }

    /// A document has come. With blobs coming one by one, children come before those who name them.
    pub(crate) async fn add_document(&self, digest: &Digest, document: Document) -> Result<(), OutputError> {
        self.documents.insert(digest.clone(), document);
        match self.way {
            Way::Store => {
                let content = self.document("document", digest).await?;
                self.convert_document(digest, &content, 0).await
            }
            Way::Tar => Ok(()),
        }
    }

    /// All has come, with an OCI layout's `index.json` to say what is the image.
    pub(crate) async fn convert_from(&self, index_json: &[u8]) -> Result<(), OutputError> {
        let index = Index::parse(index_json).map_err(|error| self.document_error(error))?;
        for root in &index.manifests {
            self.convert_digest("manifest", root, 0).await?;
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
    async fn convert_document(
        &self,
        digest: &Digest,
        content: &Bytes,
        depth: usize,
    ) -> Result<(), OutputError> {
        let object = parse("document", content).map_err(|error| self.document_error(error))?;
        let stored = if object.get("manifests").is_some_and(serde_json::Value::is_array) {
            if depth > DEPTH_LIMIT {
                let reason = format!("indexes are nested more than {DEPTH_LIMIT} deep");
                return Err(OutputError::Layout { reason });
            }
            self.convert_index(content, depth).await?
        } else if object.contains_key("layers") && object.contains_key("config") {
            let source = Manifest::parse(content).map_err(|error| self.document_error(error))?;
            if source.is_image() {
                self.convert_image(&source, content).await?
            } else if Attestation::parse(content).map_err(|error| self.document_error(error))?.is_some() {
                // It waits for its index, which says what it is about.
                return Ok(());
            } else {
                self.keep(&source, content).await?
            }
        } else {
            return Ok(());
        };
        self.received().stored.insert(digest.clone(), stored);
        Ok(())
    }

    async fn convert_index(&self, content: &Bytes, depth: usize) -> Result<Stored, OutputError> {
        let source = Index::parse(content).map_err(|error| self.document_error(error))?;
        for manifest in &source.manifests {
            self.convert_digest("manifest", manifest, depth + 1).await?;
        }
        let mut attested = HashMap::new();
        for (attestation, about, platform) in source.attestations() {
            let stored = self.attest(&attestation, &about, platform).await?;
            if let Some(image) = self.received().beside.get_mut(&about) {
                image.attested.push(stored.clone());
            }
            attested.insert((attestation, about), stored);
        }
        let converted = {
            let mut received = self.received();
            received.named.extend(source.manifests.iter().cloned());
            source.convert_attested(&received.stored, &attested, self.attrs.oci_media_types)
        };
        // One that is merged into what a name has is nowhere itself.
        if !self.attrs.merge_manifest {
            let Stored { media_type, content, .. } = &converted;
            let put = self.destination().await?.put_manifest(media_type, content.clone()).await;
            put.map_err(|error| self.push_error("the index", error))?;
        }
        Ok(converted)
    }

    async fn convert_image(&self, source: &Manifest, content: &Bytes) -> Result<Stored, OutputError> {
        let mut layers = Vec::with_capacity(source.layers.len());
        for layer in &source.layers {
            // A layer that came with an earlier manifest may not be announced again.
            let claim = self.claim(&layer.digest).await?;
            let here = matches!(claim, Claim::Here);
            let found = self.received().layers.get(&layer.digest).cloned().filter(|_| here);
            layers.push(found.ok_or_else(|| self.missing("layer", &layer.digest))?);
        }
        let config = self.document("image config", &source.config).await?;
        let task = self.task(format!("pushing bootstrap and manifest of {} layers", layers.len()), 0);
        let media_types = match (self.attrs.merge_manifest, self.attrs.oci_media_types) {
            (true, _) => MediaTypes::BesidePlain,
            (false, true) => MediaTypes::Oci,
            (false, false) => MediaTypes::Docker,
        };
        let form = Form { media_types, annotations: Vec::new() };
        let (flat, flat_config, layers) = self.flattened(content, &config, layers).await?;
        let mut assembled = self.assemble(&flat, &flat_config, layers.clone(), &form).await?;
        task.finish();
        if self.attrs.images != Images::None {
            assembled = self.with_lock(&flat, &flat_config, layers, form, &assembled.digest).await?;
        }
        tracing::info!(image = self.title(), digest = %assembled.digest, "image assembled");
        let stored = Stored::from(assembled);
        if self.attrs.merge_manifest {
            let image = self.beside(&config, stored.clone())?;
            self.received().beside.insert(digest::sha256(content), image);
        }
        Ok(stored)
    }

    /// The image `nydus`, whose source has this config, to be merged into what a name has.
    fn beside(&self, config: &[u8], nydus: Stored) -> Result<NydusImage, OutputError> {
        let platform = PlatformName::of_config(config)
            .map_err(|error| self.document_error(DocumentError::new("image config", error)))?;
        let diff_ids = diff_ids(config).map_err(|error| self.document_error(error))?;
        Ok(NydusImage { platform, diff_ids, nydus, attested: Vec::new() })
    }

    async fn assemble(
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

    /// Stores the attestation `digest` of what the manifest `about` became.
    async fn attest(
        &self,
        digest: &Digest,
        about: &Digest,
        platform: Option<&serde_json::Value>,
    ) -> Result<Stored, OutputError> {
        let content = self.document("attestation", digest).await?;
        let attestation = Attestation::parse(&content).map_err(|error| self.document_error(error))?;
        let stored = self.received().stored.get(about).cloned();
        let (Some(attestation), Some(stored)) = (attestation, stored) else {
            let source = Manifest::parse(&content).map_err(|error| self.document_error(error))?;
            return self.keep(&source, &content).await;
        };
        let mut blobs = HashMap::new();
        for blob in attestation.statements.iter().chain([&attestation.config]) {
            blobs.insert(blob.clone(), self.document("blob", blob).await?);
        }
        let names = self.attrs.package_urls(platform);
        let subject = Subject { source: about, stored: &stored, names: &names };
        let attested = attestation.about(&subject, &blobs).map_err(|error| self.document_error(error))?;
        for blob in attested.blobs {
            let put = self.destination().await?.put_blob(blob).await;
            put.map_err(|error| self.push_error("an attestation's blob", error))?;
        }
        let Stored { media_type, content, .. } = &attested.manifest;
        let put = self.destination().await?.put_manifest(media_type, content.clone()).await;
        put.map_err(|error| self.push_error("an attestation", error))?;
        Ok(attested.manifest)
    }

    /// Stores an artifact as it is.
    async fn keep(&self, source: &Manifest, content: &Bytes) -> Result<Stored, OutputError> {
        for digest in source.layers.iter().map(|layer| &layer.digest).chain([&source.config]) {
            let blob = self.document("blob", digest).await?;
            let put = self.destination().await?.put_blob(blob).await;
            put.map_err(|error| self.push_error(format!("blob {digest}"), error))?;
        }
        let media_type = source.media_type().to_owned();
        let put = self.destination().await?.put_manifest(&media_type, content.clone()).await;
        let digest = put.map_err(|error| self.push_error("an artifact", error))?;
        Ok(Stored { media_type, content: content.clone(), digest })
    }

    async fn document(&self, what: &'static str, digest: &Digest) -> Result<Bytes, OutputError> {
        let document = self.documents.get(digest).await;
        let document = document.map_err(|error| self.documents_error(digest, error))?;
        document.ok_or_else(|| self.missing(what, digest))
    }

    fn missing(&self, what: &'static str, digest: &Digest) -> OutputError {
        OutputError::Missing { title: self.title(), what, digest: digest.clone() }
    }

    /// The image that no index names: what the build made.
    fn root(&self) -> Option<Stored> {
        let received = self.received();
        let mut roots = received.stored.iter().filter(|(source, _)| !received.named.contains(*source));
        roots.next().map(|(_, stored)| stored.clone())
    }

    /// The steps in which the image gets its names: what each is called, and the names.
    fn naming(&self, root: &Stored) -> Vec<(String, &[Reference])> {
        let names = &self.attrs.names;
        match self.attrs.receiver {
            Receiver::Registry if self.attrs.push && !self.attrs.push_by_digest => {
                let step = |name: &'_ Reference| format!("pushing {name}@{}", root.digest);
                names.iter().map(|name| (step(name), std::slice::from_ref(name))).collect()
            }
            // Under its digest it is there already.
            Receiver::Registry | Receiver::ClientStore => Vec::new(),
            Receiver::ClientArchive => vec![(format!("sending {} to the client", root.digest), names)],
        }
    }

    /// buildkitd is done: gives the image its names and returns it.
    pub(crate) async fn publish(&self) -> Result<Stored, OutputError> {
        // Before its name: whoever finds the image finds them.
        if self.attrs.images == Images::Embed {
            self.embed().await?;
        }
        if self.attrs.merge_manifest {
            return self.publish_merged().await;
        }
        let root = self.root().ok_or_else(|| OutputError::NoImage { title: self.title() })?;
        for (title, names) in self.naming(&root) {
            let step = self.progress.step(self.index, title);
            let published = self.destination().await?.publish(names, Some(&root)).await;
            if let Err(error) = published {
                let error = self.push_error(self.title(), error);
                step.fail(&error.to_string());
                return Err(error);
            }
            step.finish();
        }
        Ok(root)
    }
}

impl Output {
    /// Puts the images into the index of each name, and returns the first of those.
    async fn publish_merged(&self) -> Result<Stored, OutputError> {
        let mut images: Vec<NydusImage> = self.received().beside.values().cloned().collect();
        images.sort_by_key(|image| image.platform.to_string());
        let destination = self.destination().await?;
        let Some((client, _)) = destination.repository().filter(|_| !images.is_empty()) else {
            return Err(OutputError::NoImage { title: self.title() });
        };
        let mut first = None;
        for name in &self.attrs.names {
            let step = self.progress.step(self.index, format!("pushing beside the plain image at {name}"));
            let merged = async {
                let merged = merge(client, name, &images)
                    .await
                    .map_err(|error| OutputError::Merge { title: self.title(), error: Box::new(error) })?;
                let named = std::slice::from_ref(name);
                let published = destination.publish(named, Some(&merged)).await;
                published.map_err(|error| self.push_error(name.to_string(), error))?;
                Ok(merged)
            };
            match merged.await {
                Ok(merged) => {
                    first.get_or_insert(merged);
                }
                Err(error) => {
                    let error: OutputError = error;
                    step.fail(&error.to_string());
                    return Err(error);
                }
            }
            step.finish();
        }
        first.ok_or_else(|| OutputError::NoImage { title: self.title() })
    }
}

/// Keeps others from writing a blob into an output.
#[derive(Debug)]
pub(crate) struct BlobLock<'a> {
    output: &'a Output,
    digest: Digest,
}

impl Drop for BlobLock<'_> {
    fn drop(&mut self) {
        self.output.received().writing.remove(&self.digest);
    }
}
