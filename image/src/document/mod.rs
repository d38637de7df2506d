//! The JSON documents of an image, each parsed in one place and edited so that unknown members stay.
//!
//! - `parsed`: which of them a document is.
//! - `kind`: what artifacts are called.
//! - `descriptor`: what they name.
//! - `manifest`: of one platform's image, or of something that is kept as it is.
//! - `index`: of several platforms, and attestations.
//! - `beside`: nydus images next to the plain ones of an index.
//! - `config`: of an image.
//! - `addition`: one layer more.
//! - `flattened`: one layer for all.
//! - `attestation`: statements about another manifest.

mod addition;
mod attestation;
mod beside;
mod config;
mod descriptor;
mod flattened;
mod index;
mod kind;
mod manifest;
mod parsed;

pub use addition::{with_labels, with_layer};
pub use attestation::{Attestation, Attested, Rewritten, Subject, statement_about};
pub use beside::{Beside, StaleNydus};
pub use config::ImageConfig;
pub(crate) use config::convert as convert_config;
pub use descriptor::Role;
pub use flattened::flattened;
pub use index::{Index, Stored};
pub use manifest::{BlobLayer, Described, Manifest, MediaTypes};
pub use parsed::{Artifact, DEPTH_LIMIT, DocumentShape, Parsed};

pub use registry::media_types::{
    DOCKER_CONFIG, DOCKER_INDEX, DOCKER_MANIFEST, EMPTY_CONFIG, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST,
};

/// A JSON object.
pub type Object = serde_json::Map<String, serde_json::Value>;

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
    /// A document called `document`, wrong for this reason.
    pub fn new(document: &'static str, reason: impl ToString) -> Self {
        Self { document, reason: reason.to_string() }
    }
}

/// Parses a document that has to be a JSON object.
///
/// # Errors
///
/// When it is none; `document` is what the error calls it.
pub fn parse(document: &'static str, json: &[u8]) -> Result<Object, DocumentError> {
    serde_json::from_slice(json).map_err(|error| DocumentError { document, reason: error.to_string() })
}

/// Writes a document; the same object gives the same bytes.
fn serialise(object: &Object) -> bytes::Bytes {
    serde_json::to_vec(object).expect("a JSON object that was parsed can be written").into()
}
