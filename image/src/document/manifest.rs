//! The manifest: the source's, its layers replaced by blobs and the bootstrap.

use std::collections::BTreeMap;

use registry::client::Descriptor;
use registry::digest::Digest;
use registry::nydus;
use serde_json::{Value, json};

use super::descriptor::{Role, descriptor, descriptors};
use super::kind::{self, IN_TOTO};
use super::{
    DOCKER_CONFIG, DOCKER_MANIFEST, DocumentError, EMPTY_CONFIG, OCI_CONFIG, OCI_MANIFEST, Object, parse,
    parsed, serialise,
};

/// What the media types of layers that are tars begin with.
const LAYER_TYPES: [&str; 2] = ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."];

/// The media types of a converted image.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum MediaTypes {
    /// OCI's.
    #[default]
    Oci,
    /// Docker's.
    Docker,
    /// Those by which plain clients skip it where it stands next to a plain image in an index.
    BesidePlain,
}

/// What a descriptor says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Described {
    /// The digest.
    pub digest: Digest,
    /// The size in bytes.
    pub size: u64,
}

/// A blob as a manifest names it.
#[derive(Clone, Debug)]
pub struct BlobLayer {
    /// The blob.
    pub described: Described,
    /// What else its layer says.
    pub annotations: Vec<(&'static str, String)>,
}

/// A source manifest, as far as it matters here.
#[derive(Clone, Debug)]
pub struct Manifest {
    object: Object,
    /// The config.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    ///
    /// When it is none, or what it names is not described.
    pub fn parse(json: &[u8]) -> Result<Self, DocumentError> {
        let object = parse("manifest", json)?;
        parsed::refuse(&object)?;
        Self::of_object(object)
    }

    pub(super) fn of_object(object: Object) -> Result<Self, DocumentError> {
        let config = descriptor("manifest", &object, "config")?;
        let layers = descriptors("manifest", &object, "layers")?;
        Ok(Self { object, config, layers })
    }

    /// Whether this is an image; else (attestations, artifacts) it is kept as it is.
    pub fn is_image(&self) -> bool {
        let config = self.config.media_type();
        [OCI_CONFIG, DOCKER_CONFIG].contains(&config.as_ref()) && self.foreign_layer().is_none()
    }

    /// Whether this is a nydus image with the media types by which plain clients skip it in an index.
    pub fn is_beside_plain(&self) -> bool {
        self.config.media_type().as_ref() == nydus::MEDIA_TYPE_CONFIG && self.nydus_layer().is_some()
    }

    /// A layer that no image has.
    fn foreign_layer(&self) -> Option<&Descriptor> {
        let is_foreign = |layer: &&Descriptor| {
            !LAYER_TYPES.iter().any(|prefix| layer.media_type().as_ref().starts_with(prefix))
        };
        self.layers.iter().find(is_foreign)
    }

    /// Whether all its layers are in-toto statements, and it has some.
    pub(super) fn is_attestation(&self) -> bool {
        !self.layers.is_empty() && self.layers.iter().all(|layer| layer.media_type().as_ref() == IN_TOTO)
    }

    /// What it is, in a few words: `an image`, `a Helm chart (application/vnd.cncf.helm.config.v1+json)`.
    pub fn what(&self) -> String {
        if self.is_image() {
            return "an image".to_owned();
        }
        let artifact =
            self.object.get("artifactType").and_then(Value::as_str).filter(|kind| !kind.is_empty());
        let config = Some(self.config.media_type().as_ref())
            .filter(|kind| ![OCI_CONFIG, DOCKER_CONFIG, EMPTY_CONFIG].contains(kind));
        let layer = || self.foreign_layer().map(|layer| layer.media_type().as_ref());
        kind::named(artifact.or(config).or_else(layer).unwrap_or(self.media_type()))
    }

    /// A layer that makes this a nydus image already.
    pub fn nydus_layer(&self) -> Option<&Descriptor> {
        let is_nydus = |layer: &&Descriptor| {
            Role::of(layer).is_some() || layer.media_type().as_ref() == nydus::MEDIA_TYPE_BLOB
        };
        self.layers.iter().find(is_nydus)
    }

    /// The layer with the bootstrap, of a nydus image.
    pub fn bootstrap(&self) -> Option<&Descriptor> {
        self.layers.iter().find(|layer| Role::of(layer) == Some(Role::Bootstrap))
    }

    /// Config and layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.layers.iter().chain([&self.config])
    }

    /// Its annotations that are texts.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let annotations = self.object.get("annotations").and_then(Value::as_object).into_iter().flatten();
        annotations.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
    }

    pub(super) fn object(&self) -> &Object {
        &self.object
    }

    /// The media type that it has itself.
    pub fn media_type(&self) -> &str {
        self.object.get("mediaType").and_then(Value::as_str).unwrap_or(OCI_MANIFEST)
    }

    /// The manifest of the nydus image, and its media type.
    pub fn convert(
        &self,
        config: &Described,
        blobs: &[BlobLayer],
        bootstrap: &Described,
        types: MediaTypes,
        annotations: &[(&'static str, String)],
    ) -> (bytes::Bytes, &'static str) {
        let (media_type, config_type, bootstrap_type) = match types {
            MediaTypes::BesidePlain => (OCI_MANIFEST, nydus::MEDIA_TYPE_CONFIG, nydus::MEDIA_TYPE_BOOTSTRAP),
            MediaTypes::Oci => (OCI_MANIFEST, OCI_CONFIG, nydus::MEDIA_TYPE_BOOTSTRAP),
            MediaTypes::Docker => (DOCKER_MANIFEST, DOCKER_CONFIG, nydus::MEDIA_TYPE_BOOTSTRAP_DOCKER),
        };
        let mut layers: Vec<Value> = blobs
            .iter()
            .map(|blob| {
                let mut annotations = json!({ nydus::ANNOTATION_BLOB: nydus::TRUE });
                for (name, value) in &blob.annotations {
                    annotations[*name] = json!(value);
                }
                described(nydus::MEDIA_TYPE_BLOB, &blob.described, Some(annotations))
            })
            .collect();
        let mut of_bootstrap = json!({
            nydus::ANNOTATION_BOOTSTRAP: nydus::TRUE,
            nydus::ANNOTATION_FS_VERSION: nydus::FS_VERSION,
        });
        if blobs.len() > self.layers.len() {
            // Those behind the layers' own.
            let dictionary = blobs[self.layers.len()..].iter();
            let ids: Vec<&str> = dictionary.map(|blob| blob.described.digest.digest()).collect();
            of_bootstrap[nydus::ANNOTATION_REFERENCE_BLOB_IDS] = json!(json!(ids).to_string());
        }
        layers.push(described(bootstrap_type, bootstrap, Some(of_bootstrap)));
        let mut manifest = self.object.clone();
        manifest.insert("mediaType".to_owned(), json!(media_type));
        manifest.insert("config".to_owned(), described(config_type, config, None));
        manifest.insert("layers".to_owned(), Value::Array(layers));
        if types == MediaTypes::BesidePlain {
            manifest.insert("artifactType".to_owned(), json!(nydus::ARTIFACT_TYPE_MANIFEST));
        }
        annotate(&mut manifest, annotations);
        (serialise(&manifest), media_type)
    }
}

/// Adds annotations to a document; those it has of the same name give way.
fn annotate(document: &mut Object, annotations: &[(&'static str, String)]) {
    if annotations.is_empty() {
        return;
    }
    let all = document.entry("annotations").or_insert_with(|| json!({}));
    if !all.is_object() {
        *all = json!({});
    }
    for (name, value) in annotations {
        all[*name] = json!(value);
    }
}

fn described(media_type: &str, described: &Described, annotations: Option<Value>) -> Value {
    let mut written = json!({
        "mediaType": media_type, "digest": described.digest.as_ref(), "size": described.size,
    });
    if let (Some(annotations), Some(object)) = (annotations, written.as_object_mut()) {
        object.insert("annotations".to_owned(), annotations);
    }
    written
}

#[cfg(test)]
mod tests {
    use registry::digest::sha256;

    use super::*;

    fn source(config_type: &str, layer_type: &str) -> Manifest {
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": config_type, "digest": sha256(b"config").as_ref(), "size": 6},
            "layers": [{"mediaType": layer_type, "digest": sha256(b"layer").as_ref(), "size": 5}],
            "annotations": {"a": "b"}, "x-unknown": [1],
        });
        Manifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap()
    }

    fn described(content: &[u8]) -> Described {
        Described { digest: sha256(content), size: content.len() as u64 }
    }

    fn blob(content: &[u8]) -> BlobLayer {
        BlobLayer { described: described(content), annotations: vec![("own", "annotation".to_owned())] }
    }

    #[test]
    fn blobs_come_first_and_the_bootstrap_last_with_their_annotations() {
        let source = source(OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+gzip");
        assert!(source.is_image());
        let (manifest, media_type) = source.convert(
            &described(b"new"),
            &[blob(b"blob")],
            &described(b"bootstrap"),
            MediaTypes::Oci,
            &[],
        );
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!((media_type, &manifest["mediaType"]), (OCI_MANIFEST, &json!(OCI_MANIFEST)));
        assert_eq!(manifest["config"]["digest"], sha256(b"new").as_ref());
        assert_eq!(manifest["layers"][0]["mediaType"], nydus::MEDIA_TYPE_BLOB);
        let annotations = json!({nydus::ANNOTATION_BLOB: "true", "own": "annotation"});
        assert_eq!(manifest["layers"][0]["annotations"], annotations);
        assert_eq!(manifest["layers"][1]["annotations"][nydus::ANNOTATION_BOOTSTRAP], "true");
        assert_eq!(manifest["layers"][1]["annotations"][nydus::ANNOTATION_FS_VERSION], "6");
        assert_eq!((&manifest["annotations"]["a"], &manifest["x-unknown"]), (&json!("b"), &json!([1])));
    }

    #[test]
    fn docker_media_types_are_docker_s_throughout() {
        let source = source(OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar");
        let (manifest, media_type) =
            source.convert(&described(b"new"), &[], &described(b"bootstrap"), MediaTypes::Docker, &[]);
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(media_type, DOCKER_MANIFEST);
        assert_eq!(manifest["config"]["mediaType"], DOCKER_CONFIG);
        assert_eq!(manifest["layers"][0]["mediaType"], nydus::MEDIA_TYPE_BOOTSTRAP_DOCKER);
    }

    #[test]
    fn next_to_a_plain_manifest_it_has_types_that_plain_clients_skip() {
        let source = source(OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar");
        let annotations = vec![(nydus::ANNOTATION_SOURCE_DIGEST, "sha256:x".to_owned())];
        let blobs = [blob(b"blob"), blob(b"dictionary")];
        let bootstrap = described(b"bootstrap");
        let (manifest, _) =
            source.convert(&described(b"new"), &blobs, &bootstrap, MediaTypes::BesidePlain, &annotations);
        let found = Manifest::parse(&manifest).unwrap();
        assert!(found.is_beside_plain() && !found.is_image());
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["artifactType"], nydus::ARTIFACT_TYPE_MANIFEST);
        assert_eq!(manifest["config"]["mediaType"], nydus::MEDIA_TYPE_CONFIG);
        assert_eq!(manifest["annotations"][nydus::ANNOTATION_SOURCE_DIGEST], "sha256:x");
        assert_eq!(manifest["annotations"]["a"], "b");
        let reference = &manifest["layers"][2]["annotations"][nydus::ANNOTATION_REFERENCE_BLOB_IDS];
        assert_eq!(*reference, json!([blobs[1].described.digest.digest()]).to_string());
    }

    #[test]
    fn attestations_and_artifacts_are_no_images() {
        assert!(!source(OCI_CONFIG, "application/vnd.in-toto+json").is_image());
        assert!(
            !source("application/vnd.oci.empty.v1+json", "application/vnd.oci.image.layer.v1.tar").is_image()
        );
    }
}
