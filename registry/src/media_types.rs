//! The media types of images. Those of nydus are in [`crate::nydus`].

/// OCI's media type of a manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI's media type of an index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI's media type of an image's config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a config that says nothing.
pub const EMPTY_CONFIG: &str = "application/vnd.oci.empty.v1+json";
/// Docker's media type of a manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's media type of an index.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's media type of an image's config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// OCI's media type of a layer that is a tar; with `+gzip` or `+zstd` behind it, of a compressed one.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker's media type of a layer that is a tar; with `.gzip` behind it, of a compressed one.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker's manifests of schema 1, signed, which no registry hands out to those who accept others.
pub const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
/// The same, unsigned.
pub const DOCKER_SCHEMA_1_PLAIN: &str = "application/vnd.docker.distribution.manifest.v1+json";
