//! The manifest: the source's, its layers replaced by blobs and the bootstrap.

use registry::digest::Digest;
use registry::nydus;
use serde_json::{Value, json};

use super::{
    DOCKER_CONFIG, DOCKER_MANIFEST, DocumentError, OCI_CONFIG, OCI_MANIFEST, Object, parse, serialise,
};

/// The media types of a converted image.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum MediaTypes {
    /// OCI's.
    #[default]
    Oci,
    /// Docker's.
    Docker,
    /// Those by which plain clients skip it where it stands beside a plain image in an index.
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
    /// Digest of the config.
    pub config: Digest,
    /// The layers, the lowest first.
    pub layers: Vec<ManifestLayer>,
}

/// A layer of a source manifest.
#[derive(Clone, Debug)]
pub struct ManifestLayer {
    /// The layer's digest.
    pub digest: Digest,
    media_type: String,
    is_nydus: bool,
}

impl Manifest {
    /// Reads a manifest.
    pub fn parse(json: &[u8]) -> Result<Self, DocumentError> {
        let object = parse("manifest", json)?;
        let config = digest_of(object.get("config"))?;
        let layers =
            object.get("layers").and_then(Value::as_array).ok_or_else(|| wrong("it has no layers"))?;
        let layers = layers
            .iter()
            .map(|layer| {
                let media_type =
                    layer.get("mediaType").and_then(Value::as_str).unwrap_or_default().to_owned();
                let annotations = layer.get("annotations").and_then(Value::as_object);
                let is_nydus = annotations.is_some_and(|annotations| {
                    [nydus::ANNOTATION_BLOB, nydus::ANNOTATION_BOOTSTRAP]
                        .iter()
                        .any(|name| annotations.get(*name).is_some_and(|value| value == nydus::TRUE))
                });
                Ok(ManifestLayer { digest: digest_of(Some(layer))?, media_type, is_nydus })
            })
            .collect::<Result<Vec<_>, DocumentError>>()?;
        Ok(Self { object, config, layers })
    }

    /// Whether this is an image; else (attestations, artifacts) it is kept as it is.
    pub fn is_image(&self) -> bool {
        let config =
            self.object.get("config").and_then(|config| config.get("mediaType")).and_then(Value::as_str);
        let is_layer = |layer: &ManifestLayer| {
            layer.media_type.starts_with("application/vnd.oci.image.layer.")
                || layer.media_type.starts_with("application/vnd.docker.image.rootfs.")
        };
        matches!(config, Some(OCI_CONFIG | DOCKER_CONFIG)) && self.layers.iter().all(is_layer)
    }

    /// A layer that makes this a nydus image already.
    pub fn nydus_layer(&self) -> Option<&Digest> {
        let is_nydus = |layer: &&ManifestLayer| layer.is_nydus || layer.media_type == nydus::MEDIA_TYPE_BLOB;
        self.layers.iter().find(is_nydus).map(|layer| &layer.digest)
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
                descriptor(nydus::MEDIA_TYPE_BLOB, &blob.described, Some(annotations))
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
        layers.push(descriptor(bootstrap_type, bootstrap, Some(of_bootstrap)));
        let mut manifest = self.object.clone();
        manifest.insert("mediaType".to_owned(), json!(media_type));
        manifest.insert("config".to_owned(), descriptor(config_type, config, None));
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

fn descriptor(media_type: &str, described: &Described, annotations: Option<Value>) -> Value {
    let mut descriptor = json!({
        "mediaType": media_type, "digest": described.digest.as_ref(), "size": described.size,
    });
    if let (Some(annotations), Some(object)) = (annotations, descriptor.as_object_mut()) {
        object.insert("annotations".to_owned(), annotations);
    }
    descriptor
}

fn wrong(reason: impl Into<String>) -> DocumentError {
    DocumentError { document: "manifest", reason: reason.into() }
}

fn digest_of(descriptor: Option<&Value>) -> Result<Digest, DocumentError> {
    let digest = descriptor.and_then(|descriptor| descriptor.get("digest")).and_then(Value::as_str);
    let digest = digest.ok_or_else(|| wrong("a descriptor has no digest"))?;
    digest.parse().map_err(|_| wrong(format!("{digest:?} is no digest")))
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
    fn beside_a_plain_manifest_it_has_types_that_plain_clients_skip() {
        let source = source(OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar");
        let annotations = vec![(nydus::ANNOTATION_SOURCE_DIGEST, "sha256:x".to_owned())];
        let blobs = [blob(b"blob"), blob(b"dictionary")];
        let bootstrap = described(b"bootstrap");
        let (manifest, _) =
            source.convert(&described(b"new"), &blobs, &bootstrap, MediaTypes::BesidePlain, &annotations);
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

    #[test]
    fn a_descriptor_without_digest_is_an_error() {
        let error = Manifest::parse(br#"{"config": {}, "layers": []}"#).unwrap_err().to_string();
        assert_eq!(error, "manifest: a descriptor has no digest");
    }
}
