//! Media types, annotations and labels that make an image in a registry a nydus image.
//!
//! Annotations on layer descriptors become snapshot labels of the same name when containerd
//! prepares the layer, so one constant serves the exporter and the snapshotter.

use serde::Deserialize;
use serde_json::Value;

/// Media type of a layer that is a nydus blob (compressed chunks, not a tar).
pub const MEDIA_TYPE_BLOB: &str = "application/vnd.oci.image.layer.nydus.blob.v1";

/// Media type of the bootstrap layer with OCI media types: a gzip tar with `image/image.boot`.
pub const MEDIA_TYPE_BOOTSTRAP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Media type of the bootstrap layer with Docker media types.
pub const MEDIA_TYPE_BOOTSTRAP_DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// `artifactType` of a nydus manifest (nydus 2.3.5 and later), so that plain clients skip it in an index.
pub const ARTIFACT_TYPE_MANIFEST: &str = "application/vnd.nydus.image.manifest.v1+json";

/// Config media type that goes with [`ARTIFACT_TYPE_MANIFEST`].
pub const MEDIA_TYPE_CONFIG: &str = "application/vnd.nydus.image.config.v1+json";

/// `platform.os.features` entry by which older clients find the nydus manifest in an index.
pub const OS_FEATURE: &str = "nydus.remoteimage.v1";

/// The prefix whose annotations containerd hands to the snapshotter as labels.
pub const LABEL_PREFIX: &str = "containerd.io/snapshot/";

/// Layer annotation and label, `"true"`: the layer is a nydus blob.
pub const ANNOTATION_BLOB: &str = "containerd.io/snapshot/nydus-blob";

/// Layer annotation and label, `"true"`: the layer is the bootstrap.
pub const ANNOTATION_BOOTSTRAP: &str = "containerd.io/snapshot/nydus-bootstrap";

/// Layer annotation and label of the bootstrap: the RAFS version, [`FS_VERSION`].
pub const ANNOTATION_FS_VERSION: &str = "containerd.io/snapshot/nydus-fs-version";

/// The RAFS version written, as an annotation's value.
pub const FS_VERSION: &str = "6";

/// The value of annotations that are flags.
pub const TRUE: &str = "true";

/// Manifest annotation: digest of the image this one was converted from.
pub const ANNOTATION_SOURCE_DIGEST: &str = "containerd.io/snapshot/nydus-source-digest";

/// Manifest annotation: reference of the image this one was converted from.
pub const ANNOTATION_SOURCE_REFERENCE: &str = "containerd.io/snapshot/nydus-source-reference";

/// Manifest annotation: version of the program that built the image.
pub const ANNOTATION_BUILDER_VERSION: &str = "containerd.io/snapshot/nydus-builder-version";

/// Layer annotation: chain id of the source layers.
pub const ANNOTATION_SOURCE_CHAIN_ID: &str = "containerd.io/snapshot/nydus-source-chainid";

/// Layer annotation: digest of the original gzip layer that a blob indexes.
pub const ANNOTATION_REF: &str = "containerd.io/snapshot/nydus-ref";

/// Layer annotation: the blob is encrypted.
pub const ANNOTATION_ENCRYPTED_BLOB: &str = "containerd.io/snapshot/nydus-encrypted-blob";

/// Layer annotation of the bootstrap: JSON list of blob ids that come from a chunk dictionary.
pub const ANNOTATION_REFERENCE_BLOB_IDS: &str = "containerd.io/snapshot/nydus-reference-blob-ids";

/// Manifest annotation: the image is a build cache.
pub const ANNOTATION_CACHE: &str = "containerd.io/snapshot/nydus-cache";

/// Label on Prepare: the name under which the unpacked layer is to be committed (its chain id).
pub const LABEL_SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// Label on Prepare from CRI: the image reference being pulled.
pub const LABEL_CRI_IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";

/// Label on Prepare from CRI: digest of the layer.
pub const LABEL_CRI_LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";

/// Label on Prepare from CRI: digest of the image's manifest.
pub const LABEL_CRI_MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";

/// Label on Prepare from CRI: digests of this and the following layers, separated by commas.
pub const LABEL_CRI_IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";

/// Label on Prepare from BuildKit: the image reference.
pub const LABEL_STARGZ_REFERENCE: &str = "containerd.io/snapshot/remote/stargz.reference";

/// Which entries of an index it says to be nydus images.
///
/// # Errors
///
/// When it is no index.
pub fn nydus_entries(index: &[u8]) -> Result<Vec<bool>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Value>,
    }
    let index: Index = serde_json::from_slice(index)?;
    Ok(index.manifests.iter().map(is_nydus_entry).collect())
}

/// Whether the entry of an index says that it is a nydus image: by its artifact type, or by a feature of its platform.
pub fn is_nydus_entry(entry: &Value) -> bool {
    let features = entry.pointer("/platform/os.features").and_then(Value::as_array);
    entry.get("artifactType").and_then(Value::as_str) == Some(ARTIFACT_TYPE_MANIFEST)
        || features.into_iter().flatten().any(|feature| feature == OS_FEATURE)
}
