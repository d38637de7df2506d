//! From converted layers to an image in a registry.
//!
//! - `output`: what has come for one output of a build, and what is made of it.
//! - `assemble`: one platform's image: bootstrap, config, manifest.
//! - `bootstrap`: the bootstrap layer, a gzip tar.
//! - `copy`: blobs that are kept as they are.
//! - `config`, `manifest`, `index`: the JSON documents, each edited so that unknown members stay.

mod assemble;
mod bootstrap;
mod config;
mod copy;
pub(crate) mod index;
pub(crate) mod manifest;
mod output;

pub(crate) use assemble::assemble_files;
pub use assemble::{AssembleError, AssembleOptions, Assembled, assemble};
pub use bootstrap::BootstrapError;
pub(crate) use copy::copy_blob;
pub use copy::{CopyError, DictionaryBlobs};
pub(crate) use output::{BlobLock, Output, OutputError, Way};

/// OCI's media type of a manifest.
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI's media type of an index.
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI's media type of an image's config.
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker's media type of a manifest.
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's media type of an index.
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's media type of an image's config.
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// A JSON object.
type Object = serde_json::Map<String, serde_json::Value>;

/// A document that is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("{document}: {reason}")]
pub struct DocumentError {
    /// Which document: `image config`, `manifest`, `index`.
    document: &'static str,
    /// What is wrong with it.
    reason: String,
}

impl DocumentError {
    pub(crate) fn new(document: &'static str, reason: impl ToString) -> Self {
        Self { document, reason: reason.to_string() }
    }
}

/// Parses a document that has to be a JSON object.
fn parse(document: &'static str, json: &[u8]) -> Result<Object, DocumentError> {
    serde_json::from_slice(json).map_err(|error| DocumentError { document, reason: error.to_string() })
}

/// Writes a document; the same object gives the same bytes.
fn serialise(object: &Object) -> bytes::Bytes {
    serde_json::to_vec(object).expect("a JSON object that was parsed can be written").into()
}
