//! Why an image was not converted.

use crate::source::SourceError;
use registry::digest::Digest;

use crate::assemble::AssembleError;
use crate::describe;
use crate::destination::{CopyError, StoreError};
use crate::document::DocumentError;
use crate::layer::ConvertError;

/// Why an image was not converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConversionError {
    /// The source cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The destination is of a kind that is only read.
    #[error("{location}: a converted image is written to a registry, to oci:, oci-archive: or files:")]
    NotWritable {
        /// The destination.
        location: String,
    },
    /// The destination's name states a digest, which nobody can know before.
    #[error("{location} has a digest: a name to push to has a tag or nothing after it")]
    NameWithDigest {
        /// The destination.
        location: String,
    },
    /// The destination holds one image, and there are several.
    #[error(
        "{location} takes one image, and the source has images for {platforms}: choose one with --platform"
    )]
    SeveralPlatforms {
        /// The destination.
        location: String,
        /// The platforms of the source, separated by commas.
        platforms: String,
    },
    /// Nobody would find a plain image among the parts of a nydus image.
    #[error("{location} takes a nydus image alone: --also-oci needs a registry, oci: or oci-archive:")]
    NoRoomForPlainImage {
        /// The destination.
        location: String,
    },
    /// There is no plain image to keep.
    #[error("{name} is no image of layers that could be kept: --also-oci needs one")]
    NoPlainImage {
        /// The source.
        name: String,
    },
    /// A directory is a single image.
    #[error("{name} is one image: choose one platform for it, or none for this machine's")]
    DirectoryPlatforms {
        /// The source.
        name: String,
    },
    /// There is nothing to convert.
    #[error("{name}: manifest {manifest} is already a nydus image{layer}")]
    AlreadyNydus {
        /// The source.
        name: String,
        /// Digest of its manifest.
        manifest: Digest,
        /// The layer by which that shows, with a separator in front.
        layer: String,
    },
    /// The source has no image.
    #[error("{name} holds no image to convert: it is {what}")]
    NoImage {
        /// The source.
        name: String,
        /// What it is, such as `a Helm chart (…)`.
        what: String,
    },
    /// The documents take too much memory.
    #[error("{name}: its manifests and configs take more than {limit} bytes")]
    Documents {
        /// The source.
        name: String,
        /// The most that they may take, in bytes.
        limit: usize,
    },
    /// A document is not what it should be.
    #[error("{name}, {document}: {error}")]
    Document {
        /// The source.
        name: String,
        /// Digest of the document.
        document: Digest,
        /// What is wrong.
        error: DocumentError,
    },
    /// A layer cannot be read.
    #[error("{name}: layer {layer}: {error}")]
    Read {
        /// The source.
        name: String,
        /// The layer.
        layer: Digest,
        /// Why.
        error: Box<SourceError>,
    },
    /// A layer cannot be converted.
    #[error("{name}: layer {layer}: {}", describe(error.as_ref()))]
    Layer {
        /// The source.
        name: String,
        /// The layer.
        layer: Digest,
        /// Why.
        error: Box<ConvertError>,
    },
    /// The files of a directory cannot be converted.
    #[error("{name}: {}", describe(error.as_ref()))]
    Directory {
        /// The directory.
        name: String,
        /// Why.
        error: Box<ConvertError>,
    },
    /// The layers cannot be made one.
    #[error("{name}: cannot flatten its layers: {}", describe(error.as_ref()))]
    Flatten {
        /// The source.
        name: String,
        /// Why.
        error: Box<ConvertError>,
    },
    /// An image cannot be put together.
    #[error("{name}: {}", describe(error.as_ref()))]
    Assemble {
        /// The source.
        name: String,
        /// Why.
        error: Box<AssembleError>,
    },
    /// What is kept cannot be copied.
    #[error("{name}: blob {digest}: {}", describe(error.as_ref()))]
    Copy {
        /// The source.
        name: String,
        /// The blob.
        digest: Digest,
        /// Why.
        error: Box<CopyError>,
    },
    /// Something cannot be stored.
    #[error("cannot store {what}: {}", describe(error.as_ref()))]
    Store {
        /// What.
        what: String,
        /// Why.
        error: Box<StoreError>,
    },
    /// Somebody did not want it any more.
    #[error("cancelled: nothing was stored under the destination's name")]
    Cancelled,
}
