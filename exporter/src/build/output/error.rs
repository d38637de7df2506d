//! Why an output fails.

use image::assemble::{AssembleError, MergeError};
use image::describe;
use image::destination::{CopyError, StoreError};
use image::document::DocumentError;
use image::layer::ConvertError;
use registry::digest::Digest;
use registry::reference::{Reference, Repository};

use crate::build::documents::DocumentsError;
use crate::build::images::ImagesError;
use crate::build::prepared::PrepareError;
use crate::build::target::TargetError;

/// Why an output fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    #[error("{title}: layer {digest}: {}", describe(error.as_ref()))]
    Layer { title: String, digest: Digest, error: Box<ConvertError> },
    #[error(
        "{title}: layer {digest} is no tar: {reason}; BuildKit hands a layer over in the form in which it was exported first, here \
         perhaps by compression=nydus: write force-compression=true with this output to have it as a tar"
    )]
    NoTar { title: String, digest: Digest, reason: String },
    #[error(
        "{title}: layer {digest} cannot be read from buildkitd's content service: {reason}; build again, or without \
         flatten=true"
    )]
    Kept { title: String, digest: Digest, reason: String },
    #[error("blob {digest} from buildkitd {reason}")]
    Blob { digest: Digest, reason: String },
    #[error("OCI layout from buildkitd: {reason}")]
    Layout { reason: String },
    #[error("document {digest} from buildkitd: {error}")]
    Documents { digest: Digest, error: DocumentsError },
    #[error("{title}: {what} {digest} did not come from buildkitd, and what names it did")]
    Missing { title: String, what: &'static str, digest: Digest },
    #[error("{title}: {}", describe(error.as_ref()))]
    Prepare { title: String, error: Box<PrepareError> },
    #[error("{title}: cannot flatten the layers: {}", describe(error.as_ref()))]
    Flatten { title: String, error: Box<ConvertError> },
    #[error("{title}: {}", describe(error.as_ref()))]
    Assemble { title: String, error: Box<AssembleError> },
    #[error("{title}: cannot store {what}: {}", describe(error.as_ref()))]
    Push { title: String, what: String, error: Box<StoreError> },
    #[error("{title}: cannot copy it to {repository}: {}", describe(error.as_ref()))]
    Copy { title: String, repository: Repository, error: Box<CopyError> },
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
    #[error(
        "{title}: merge-manifest: other exporters wrote the index at {name} {rounds} times while this image was put into it: build again"
    )]
    WrittenOver { title: String, name: Box<Reference>, rounds: usize },
    #[error("{title}: buildkitd reported success, and handed over no image: expected one")]
    NoImage { title: String },
}

impl OutputError {
    /// Whether a blob is not what it should be; nothing else is wrong then.
    pub(crate) fn is_of_content(&self) -> bool {
        match self {
            Self::Blob { .. } | Self::NoTar { .. } => true,
            Self::Layer { error, .. } => !matches!(**error, ConvertError::Push(_)),
            _ => false,
        }
    }
}
