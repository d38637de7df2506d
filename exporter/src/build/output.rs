//! What has come for one output of a build, and what is made of it.
//!
//! Layers are converted as they come. A manifest is converted as soon as it comes, its layers being here by then, so that
//! buildkitd still waits and an error fails its own export step. What is left for the end is the name.

mod error;
mod flattened;
mod locked;
mod merged;
mod plain;
mod publish;
mod walk;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use registry::client::MANIFEST_LIMIT_BYTES;
use registry::digest::Digest;
use tokio::sync::OnceCell;

pub(crate) use error::OutputError;

use super::documents::{Document, Documents, DocumentsError};
use super::kept::KeptBlobs;
use super::keys::{Attrs, Receiver};
use super::prepared::{Preparation, Prepared};
use super::target::Target;
use super::together::TreeImages;
use crate::grpc::Status;
use crate::metrics::Tally;
use cluster::ClusterConfig;
use image::assemble::NydusImage;
use image::describe;
use image::destination::{Destination, SpoolSpace, StoreError};
use image::document::{DocumentError, Stored};
use image::layer::{
    AheadConversion, Claimed, ConvertError, ConvertedLayer, Flight, LayerConversion, Present,
};
use image::progress::{Progress, Task, short};

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

/// What there is of a layer.
#[derive(Debug)]
pub(crate) enum Claim {
    /// It is converted and stored, and stored as it is where that is asked for.
    Here,
    /// It is converted and stored, and has to come to be stored as it is.
    Converted,
    /// It has to be converted, unless it turns out to be none.
    Absent(Option<Flight>),
}

/// One output of ours.
pub(crate) struct Output {
    /// The name of its build, for the log.
    build: String,
    index: usize,
    way: Way,
    attrs: Attrs,
    target: Target,
    /// Where it is copied to from there.
    copies: Vec<Target>,
    preparation: Preparation,
    prepared: OnceCell<Prepared>,
    /// What is at its names already, as far as that is to be believed.
    present: Present,
    /// What buildkitd keeps, for layers that it need not send.
    kept: Option<KeptBlobs>,
    /// One at a time fetches what was left there.
    fetching: tokio::sync::Mutex<()>,
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
    /// Layers that are stored as they are.
    plain: HashSet<Digest>,
    /// Layers that were left with buildkitd, and their sizes in bytes.
    left: HashMap<Digest, u64>,
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
    /// Which container images are asked for, by the tree of each platform.
    container_images: Vec<TreeImages>,
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
            build: String::new(),
            index,
            way,
            attrs,
            target,
            copies: Vec::new(),
            preparation,
            prepared,
            present,
            kept: None,
            fetching: tokio::sync::Mutex::default(),
            cluster,
            progress,
            documents,
            received,
        }
    }

    /// The same, of the build of this name.
    pub(crate) fn of_build(self, reference: &str) -> Self {
        Self { build: reference.to_owned(), ..self }
    }

    /// The same, which is copied to `copies` when it is complete.
    pub(crate) fn copied_to(self, copies: Vec<Target>) -> Self {
        Self { copies, ..self }
    }

    /// The same, which uses again what is at its names already.
    pub(crate) fn reusing(self) -> Self {
        let names = match self.attrs.by_repository().first() {
            Some((_, names)) if self.attrs.push && !self.attrs.push_by_digest => names.to_vec(),
            _ => Vec::new(),
        };
        Self { present: Present::new(names), ..self }
    }

    /// The same, which leaves layers with buildkitd that may not be needed.
    pub(crate) fn leaving_with(self, kept: KeptBlobs) -> Self {
        Self { kept: Some(kept), ..self }
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
        self.found(&self.target).await
    }

    /// Where `target` turns out to be.
    async fn found<'a>(&self, target: &'a Target) -> Result<&'a Arc<dyn Destination>, OutputError> {
        let destination = target.destination().await;
        destination.map_err(|error| OutputError::Target { title: self.title(), error: Box::new(error) })
    }

    /// What came so far.
    pub(crate) fn tally(&self) -> Tally {
        let received = self.received();
        let (converted, bytes) = received.converted;
        let left = received.left.keys().filter(|digest| !received.layers.contains_key(*digest)).count();
        Tally { layers: (received.layers.len() + left) as u64, converted, bytes }
    }

    /// What converts its layers.
    async fn prepared(&self) -> Result<&Prepared, OutputError> {
        let options = &self.attrs.options;
        // Layers are converted ahead without a word to the registry: it is found out only for what is needed from there.
        let destination = match options.chunk_dict {
            Some(_) => Some(self.destination().await?.as_ref()),
            None => None,
        };
        let prepare = || self.preparation.prepare(options, destination);
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
        match self.claim_converted(digest).await? {
            Claim::Here if self.lacks_plain(digest).await? => Ok(Claim::Converted),
            claim => Ok(claim),
        }
    }

    async fn claim_converted(&self, digest: &Digest) -> Result<Claim, OutputError> {
        if self.received().layers.contains_key(digest) {
            return Ok(Claim::Here);
        }
        let Some(remembering) = self.remembering().await? else { return Ok(Claim::Absent(None)) };
        let destination = self.destination().await?;
        let claimed = remembering.claim(digest, &self.present, destination.as_ref()).await;
        match claimed.map_err(|error| self.push_error("a blob", error))? {
            Claimed::Absent(flight) => Ok(Claim::Absent(flight)),
            Claimed::Known(layer) => {
                self.task(format!("reusing {}", short(digest)), 0).finish();
                self.received().layers.insert(digest.clone(), layer);
                Ok(Claim::Here)
            }
        }
    }

    /// Begins to convert the layer `digest`.
    pub(crate) async fn convert(&self, digest: &Digest) -> Result<LayerConversion, OutputError> {
        tracing::debug!(build = self.build, image = self.title(), layer = %digest, "conversion begins");
        Ok(self.prepared().await?.layer.convert(&self.layer_destination().await?))
    }

    /// Begins to convert what may be a layer of this output; what is made of it stays in `space` until that is known.
    pub(crate) async fn convert_ahead<R: Read + Send + 'static>(
        &self,
        input: R,
        space: &Arc<SpoolSpace>,
    ) -> Result<AheadConversion<R>, OutputError> {
        Ok(self.prepared().await?.layer.convert_ahead(input, space))
    }

    /// A layer is converted and its blob stored: those who wait for `flight` get it as well.
    pub(crate) async fn add_layer(
        &self,
        digest: &Digest,
        layer: ConvertedLayer,
        flight: Option<Flight>,
    ) -> Result<(), OutputError> {
        tracing::info!(build = self.build, image = self.title(), layer = %digest, blob = %layer.digest, size = layer.size, "layer converted");
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
        let (title, digest) = (self.title(), digest.clone());
        match error.is_no_tar() {
            true => OutputError::NoTar { title, digest, reason: describe(&error) },
            false => OutputError::Layer { title, digest, error: Box::new(error) },
        }
    }

    /// The error for a layer that buildkitd kept, and does not give out.
    pub(crate) fn kept_error(&self, digest: &Digest, status: Status) -> OutputError {
        OutputError::Kept { title: self.title(), digest: digest.clone(), reason: status.message }
    }

    /// The error for something that the destination did not take.
    pub(crate) fn push_error(&self, what: impl Into<String>, error: impl Into<StoreError>) -> OutputError {
        OutputError::Push { title: self.title(), what: what.into(), error: Box::new(error.into()) }
    }

    fn document_error(&self, error: DocumentError) -> OutputError {
        OutputError::Document { title: self.title(), error }
    }

    /// Begins to take a document.
    pub(crate) fn begin_document(&self) -> Document {
        Document::new(&self.preparation.document_space)
    }

    /// The error for a document that cannot be kept or stored.
    pub(crate) fn documents_error(&self, digest: &Digest, error: DocumentsError) -> OutputError {
        match error {
            DocumentsError::NotStored(error) => self.push_error(format!("document {digest}"), *error),
            error => OutputError::Documents { digest: digest.clone(), error },
        }
    }

    /// A document has come. With blobs coming one by one, children come before those who name them.
    pub(crate) async fn add_document(&self, digest: &Digest, document: Document) -> Result<(), OutputError> {
        let size = document.size();
        let kept = self.documents.insert(digest.clone(), document);
        kept.map_err(|error| self.documents_error(digest, error))?;
        match self.way {
            // No registry takes a manifest of that size: it is a statement of an attestation, read when that comes.
            Way::Store if size > MANIFEST_LIMIT_BYTES as u64 => Ok(()),
            Way::Store => {
                let content = self.document("document", digest).await?;
                self.convert_document(digest, &content, 0).await
            }
            Way::Tar => Ok(()),
        }
    }

    async fn document(&self, what: &'static str, digest: &Digest) -> Result<Bytes, OutputError> {
        let document = self.documents.get(digest).await;
        let document = document.map_err(|error| self.documents_error(digest, error))?;
        document.ok_or_else(|| self.missing(what, digest))
    }

    fn missing(&self, what: &'static str, digest: &Digest) -> OutputError {
        OutputError::Missing { title: self.title(), what, digest: digest.clone() }
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
