//! What a document is, by what it says itself: whoever names it may say something else.

use std::collections::BTreeMap;

use registry::client::Descriptor;
use registry::media_types::{DOCKER_SCHEMA_1, DOCKER_SCHEMA_1_PLAIN};
use serde_json::Value;
use serde_json::value::RawValue;

use super::descriptor::descriptors;
use super::{DocumentError, Index, Manifest, OCI_INDEX, OCI_MANIFEST, Object, kind, parse};

/// How deep indexes may lie in indexes.
pub const DEPTH_LIMIT: usize = 4;

/// A manifest, an index, or what else may be at an image's name.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a document is read, taken apart and gone: few are there at a time"
)]
pub enum Parsed {
    /// Config and layers: an image, an attestation, most artifacts.
    Manifest(Manifest),
    /// Several of these.
    Index(Index),
    /// Something without a config.
    Artifact(Artifact),
}

/// A document without a config, such as the artifact manifests of drafts of OCI 1.1.
#[derive(Clone, Debug)]
pub struct Artifact {
    media_type: Option<String>,
    artifact_type: Option<String>,
    /// What it names.
    pub blobs: Vec<Descriptor>,
}

impl Parsed {
    /// Reads a document.
    ///
    /// # Errors
    ///
    /// When it is none, or a manifest of Docker's schema 1, or says that it is two things at once.
    pub fn parse(json: &[u8]) -> Result<Self, DocumentError> {
        let object = parse("manifest", json)?;
        refuse(&object)?;
        if object.contains_key("manifests") {
            return Index::of_object(object).map(Self::Index);
        }
        if object.contains_key("config") || object.contains_key("layers") {
            return Manifest::of_object(object).map(Self::Manifest);
        }
        let text = |name: &str| object.get(name).and_then(Value::as_str).map(str::to_owned);
        let blobs = match object.contains_key("blobs") {
            true => descriptors("artifact manifest", &object, "blobs")?,
            false => Vec::new(),
        };
        let (media_type, artifact_type) = (text("mediaType"), text("artifactType"));
        Ok(Self::Artifact(Artifact { media_type, artifact_type, blobs }))
    }

    /// The media type that it has itself, or what goes with what it looks like.
    pub fn media_type(&self) -> &str {
        match self {
            Self::Manifest(manifest) => manifest.media_type(),
            Self::Index(index) => index.media_type().unwrap_or(OCI_INDEX),
            Self::Artifact(artifact) => artifact.media_type.as_deref().unwrap_or(OCI_MANIFEST),
        }
    }

    /// What it is, in a few words: `an image`, `a Helm chart (application/vnd.cncf.helm.config.v1+json)`.
    pub fn what(&self) -> String {
        match self {
            Self::Manifest(manifest) => manifest.what(),
            Self::Index(_) => "an index".to_owned(),
            Self::Artifact(artifact) => artifact.what(),
        }
    }
}

/// What any JSON document of a build looks like, found without a value being made of what is in it: a statement of an
/// attestation may have a hundred megabytes, and many times that as values.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DocumentShape {
    /// It has a list of manifests.
    Index,
    /// It has layers and a config.
    Manifest,
    /// Anything else: a config, a statement.
    Other,
}

impl DocumentShape {
    /// That of a document.
    ///
    /// # Errors
    ///
    /// When it is no JSON object.
    pub fn of(json: &[u8]) -> Result<Self, DocumentError> {
        let members: BTreeMap<String, &RawValue> =
            serde_json::from_slice(json).map_err(|error| DocumentError::new("document", error))?;
        if members.get("manifests").is_some_and(|manifests| manifests.get().starts_with('[')) {
            return Ok(Self::Index);
        }
        let is_manifest = members.contains_key("layers") && members.contains_key("config");
        Ok(if is_manifest { Self::Manifest } else { Self::Other })
    }
}

impl Artifact {
    /// What it is, in a few words.
    pub fn what(&self) -> String {
        match self.artifact_type.as_deref().or(self.media_type.as_deref()) {
            Some(media_type) => kind::named(media_type),
            None => "a document without config, layers or manifests".to_owned(),
        }
    }
}

/// Refuses what others would take for something else.
pub(super) fn refuse(object: &Object) -> Result<(), DocumentError> {
    let media_type = object.get("mediaType").and_then(Value::as_str).unwrap_or_default();
    let is_schema_1 = object.get("schemaVersion").and_then(Value::as_u64) == Some(1)
        || [DOCKER_SCHEMA_1, DOCKER_SCHEMA_1_PLAIN].contains(&media_type);
    if is_schema_1 {
        let reason = "it is of Docker's schema 1, which is no longer used; expected an OCI manifest or one of schema 2: push \
                      the image again with Docker 1.10 or later";
        return Err(DocumentError::new("manifest", reason));
    }
    let is_manifest = object.contains_key("config") || object.contains_key("layers");
    if object.contains_key("manifests") && is_manifest {
        // One client would run the manifest and another what the index names, under one digest.
        let reason = "it has both manifests and a config or layers; expected an index or a manifest";
        return Err(DocumentError::new("manifest", reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use registry::digest::sha256;
    use serde_json::json;

    use super::super::OCI_CONFIG;
    use super::*;

    fn read(document: &Value) -> Result<Parsed, String> {
        Parsed::parse(document.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    fn described(media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": sha256(b"x").as_ref(), "size": 1})
    }

    #[test]
    fn lists_that_are_null_are_empty() {
        let image = read(&json!({"config": described(OCI_CONFIG), "layers": null}));
        assert!(
            matches!(image, Ok(Parsed::Manifest(manifest)) if manifest.is_image() && manifest.layers.is_empty())
        );
        let index = read(&json!({"manifests": null}));
        assert!(matches!(index, Ok(Parsed::Index(index)) if index.manifests.is_empty()));
    }

    #[test]
    fn a_shape_is_told_by_the_members_alone() {
        for (document, shape) in [
            (r#"{"manifests": [{"any": 1}]}"#, DocumentShape::Index),
            (r#"{"manifests": null, "config": {}, "layers": null}"#, DocumentShape::Manifest),
            (r#"{"config": {"Cmd": []}, "rootfs": {}}"#, DocumentShape::Other),
            (r#"{"predicate": {"manifests": [], "layers": [], "config": {}}}"#, DocumentShape::Other),
        ] {
            assert_eq!(DocumentShape::of(document.as_bytes()).unwrap(), shape, "{document}");
        }
        assert!(DocumentShape::of(b"[]").is_err() && DocumentShape::of(br#"{"a": }"#).is_err());
    }

    #[test]
    fn schema_1_and_documents_that_are_two_things_are_refused_by_name() {
        for old in [
            json!({"schemaVersion": 1, "fsLayers": [], "history": []}),
            json!({"mediaType": DOCKER_SCHEMA_1, "fsLayers": []}),
        ] {
            let error = read(&old).unwrap_err();
            assert!(error.contains("schema 1") && error.contains("push"), "{error}");
        }
        let both =
            read(&json!({"manifests": [], "config": described(OCI_CONFIG), "layers": []})).unwrap_err();
        assert!(both.contains("both manifests and"), "{both}");
    }

    #[test]
    fn what_is_no_image_is_named() {
        let layer = described("application/vnd.cncf.helm.chart.content.v1.tar+gzip");
        let of = |config: &str, layer: &Value| json!({"config": described(config), "layers": [layer]});
        for (document, what) in [
            (
                of("application/vnd.cncf.helm.config.v1+json", &layer),
                "a Helm chart (application/vnd.cncf.helm.config.v1+json)",
            ),
            (
                of(OCI_CONFIG, &described("application/vnd.in-toto+json")),
                "an attestation (application/vnd.in-toto+json)",
            ),
            (
                of("application/vnd.example.thing+json", &layer),
                "an artifact of type application/vnd.example.thing+json",
            ),
            (of(OCI_CONFIG, &described("application/vnd.oci.image.layer.v1.tar+zstd")), "an image"),
            (json!({"artifactType": "example/sbom", "blobs": []}), "an artifact of type example/sbom"),
            (json!({}), "a document without config, layers or manifests"),
        ] {
            assert_eq!(read(&document).unwrap().what(), what);
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_place() {
        let config = described(OCI_CONFIG);
        for (document, reason) in [
            (json!({"layers": []}), "manifest: it has no config"),
            (json!({"config": config}), "manifest: it has no layers"),
            (json!({"config": config, "layers": {}}), "manifest: layers: expected a list"),
            (
                json!({"config": config, "layers": [config, {}]}),
                "manifest: layers[1] is no descriptor: missing field `mediaType`",
            ),
            (
                json!({"manifests": [{"mediaType": "x", "digest": "sha256:../..", "size": 1}]}),
                "index: manifests[0] is no descriptor",
            ),
        ] {
            let error = read(&document).unwrap_err();
            assert!(error.starts_with(reason), "{error}");
        }
    }
}
