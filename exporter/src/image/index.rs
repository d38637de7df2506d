//! The index of an image of several platforms, or of one with attestations: the source's, naming the converted manifests.

use std::collections::HashMap;

use registry::digest::Digest;
use serde_json::{Value, json};

use super::{DOCKER_INDEX, DocumentError, OCI_INDEX, Object, parse, serialise};

/// Annotation by which an attestation names the manifest that it is about.
const ATTESTED: &str = "vnd.docker.reference.digest";

/// A manifest or index as stored.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) media_type: String,
    pub(crate) content: bytes::Bytes,
    pub(crate) digest: Digest,
}

/// An index whose entries may be replaced.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    object: Object,
    pub(crate) manifests: Vec<Digest>,
}

impl Source {
    /// Reads an index.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, DocumentError> {
        let object = parse("index", json)?;
        let wrong = |reason: &str| DocumentError { document: "index", reason: reason.to_owned() };
        let entries =
            object.get("manifests").and_then(Value::as_array).ok_or_else(|| wrong("it has no manifests"))?;
        let manifests = entries
            .iter()
            .map(|entry| {
                let digest = entry.get("digest").and_then(Value::as_str).unwrap_or_default();
                digest.parse().map_err(|_| wrong("a descriptor has no digest"))
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { object, manifests })
    }

    /// The index with `replaced`, by the digests of what they stand for.
    pub(crate) fn convert(&self, replaced: &HashMap<Digest, Stored>, oci_media_types: bool) -> Stored {
        let media_type = if oci_media_types { OCI_INDEX } else { DOCKER_INDEX };
        let mut index = self.object.clone();
        index.insert("mediaType".to_owned(), json!(media_type));
        if let Some(Value::Array(entries)) = index.get_mut("manifests") {
            for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
                replace(entry, replaced);
            }
        }
        let content = serialise(&index);
        let digest = registry::digest::sha256(&content);
        Stored { media_type: media_type.to_owned(), content, digest }
    }
}

fn replace(entry: &mut Object, replaced: &HashMap<Digest, Stored>) {
    let find = |value: Option<&Value>| {
        let digest: Digest = value?.as_str()?.parse().ok()?;
        replaced.get(&digest)
    };
    if let Some(stored) = find(entry.get("digest")) {
        entry.insert("mediaType".to_owned(), json!(stored.media_type));
        entry.insert("digest".to_owned(), json!(stored.digest.as_ref()));
        entry.insert("size".to_owned(), json!(stored.content.len()));
    }
    if let Some(Value::Object(annotations)) = entry.get_mut("annotations")
        && let Some(stored) = find(annotations.get(ATTESTED))
    {
        annotations.insert(ATTESTED.to_owned(), json!(stored.digest.as_ref()));
    }
}

#[cfg(test)]
mod tests {
    use registry::digest::sha256;

    use super::*;

    #[test]
    fn an_attestation_stays_and_names_the_converted_manifest() {
        let (image, attestation) = (sha256(b"image"), sha256(b"attestation"));
        let index = json!({
            "schemaVersion": 2, "x-unknown": true,
            "manifests": [
                {"mediaType": "old", "digest": image.as_ref(), "size": 1, "platform": {"os": "linux"}},
                {"mediaType": "kept", "digest": attestation.as_ref(), "size": 2,
                 "annotations": {ATTESTED: image.as_ref(), "vnd.docker.reference.type": "attestation-manifest"}},
            ],
        });
        let source = Source::parse(&serde_json::to_vec(&index).unwrap()).unwrap();
        assert_eq!(source.manifests, [image.clone(), attestation.clone()]);
        let content = bytes::Bytes::from_static(b"converted");
        let new = Stored { media_type: "new".to_owned(), digest: sha256(&content), content };
        let converted = source.convert(&HashMap::from([(image, new.clone())]), true);
        assert_eq!(converted.digest, sha256(&converted.content));
        let converted: Value = serde_json::from_slice(&converted.content).unwrap();
        let entries = &converted["manifests"];
        assert_eq!(
            entries[0],
            json!({
                "mediaType": "new", "digest": new.digest.as_ref(), "size": 9, "platform": {"os": "linux"},
            })
        );
        assert_eq!(entries[1]["digest"], attestation.as_ref());
        assert_eq!(entries[1]["annotations"][ATTESTED], new.digest.as_ref());
        assert_eq!((&converted["mediaType"], &converted["x-unknown"]), (&json!(OCI_INDEX), &json!(true)));
    }

    #[test]
    fn an_index_without_manifests_is_an_error() {
        assert!(Source::parse(b"{}").is_err());
    }
}
