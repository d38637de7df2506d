//! The index of an image of several platforms, or of one with attestations: the source's, naming the converted manifests.

use std::collections::HashMap;

use registry::client::Descriptor;
use registry::digest::Digest;
use registry::nydus;
use serde_json::{Value, json};

use super::descriptor::descriptors;
use super::{DOCKER_INDEX, DocumentError, OCI_INDEX, Object, parse, parsed, serialise};

/// Annotation by which an attestation names the manifest that it is about.
pub(super) const ATTESTED: &str = "vnd.docker.reference.digest";

/// Annotation by which an entry says that it is an attestation, and how.
pub(super) const ATTESTATION_TYPE: &str = "vnd.docker.reference.type";
pub(super) const ATTESTATION_MANIFEST: &str = "attestation-manifest";

/// A manifest or index as stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its media type.
    pub media_type: String,
    /// The document.
    pub content: bytes::Bytes,
    /// Its digest.
    pub digest: Digest,
}

impl Stored {
    /// Its descriptor, without anything that only an index says of it.
    pub fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest.as_ref(), "size": self.content.len() })
    }

    /// An index as it is to be stored.
    pub(super) fn index(mut index: Object, media_type: &str) -> Self {
        index.insert("mediaType".to_owned(), json!(media_type));
        let content = serialise(&index);
        let digest = registry::digest::sha256(&content);
        Self { media_type: media_type.to_owned(), content, digest }
    }
}

/// An index whose entries may be replaced.
#[derive(Clone, Debug)]
pub struct Index {
    object: Object,
    /// Its entries.
    pub manifests: Vec<Descriptor>,
}

impl Index {
    /// Reads an index.
    ///
    /// # Errors
    ///
    /// When it is none, or what it names is not described.
    pub fn parse(json: &[u8]) -> Result<Self, DocumentError> {
        let object = parse("index", json)?;
        parsed::refuse(&object)?;
        Self::of_object(object)
    }

    pub(super) fn of_object(object: Object) -> Result<Self, DocumentError> {
        let manifests = descriptors("index", &object, "manifests")?;
        Ok(Self { object, manifests })
    }

    /// The media type that it has itself.
    pub(super) fn media_type(&self) -> Option<&str> {
        self.object.get("mediaType").and_then(Value::as_str)
    }

    /// Whether it names `digest`.
    pub fn names(&self, digest: &Digest) -> bool {
        self.manifests.iter().any(|entry| entry.digest() == digest)
    }

    /// Its entries, each with whether it says that it is a nydus image.
    pub fn marked(&self) -> impl DoubleEndedIterator<Item = (&Descriptor, bool)> {
        let marks: Vec<bool> = self.entries().map(nydus::is_nydus_entry).collect();
        self.manifests.iter().zip(marks)
    }

    /// The index of one plain manifest, whose descriptor is given, which its nydus image can stand next to.
    pub fn of(descriptor: &impl serde::Serialize) -> Self {
        Self::of_all(vec![json!(descriptor)])
    }

    /// The index of these descriptors.
    pub fn of_all(descriptors: Vec<Value>) -> Self {
        let mut object = Object::new();
        object.insert("schemaVersion".to_owned(), json!(2));
        object.insert("manifests".to_owned(), descriptors.into());
        Self { object, manifests: Vec::new() }
    }

    /// Leaves out the entries of which `keep`, given the entry's number, says no; attestations go with what they attest.
    pub fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        let kept: Vec<Digest> = (0..)
            .zip(&self.manifests)
            .filter(|(number, _)| keep(*number))
            .map(|(_, entry)| entry.digest().clone())
            .collect();
        if let Some(Value::Array(entries)) = self.object.get_mut("manifests") {
            entries.retain(|entry| {
                let text = |value: Option<&Value>| {
                    value
                        .and_then(Value::as_str)
                        .is_some_and(|text| kept.iter().any(|digest| digest.as_ref() == text))
                };
                let attested = entry.get("annotations").and_then(|annotations| annotations.get(ATTESTED));
                text(entry.get("digest")) && (attested.is_none() || text(attested))
            });
        }
        // They have all been read before.
        self.manifests = descriptors("index", &self.object, "manifests").unwrap_or_default();
    }

    /// Its entries except for attestations, which have no layers of a file system.
    pub fn without_attestations(&self) -> impl Iterator<Item = &Descriptor> {
        let attests = self.entries().map(|entry| {
            let annotations = entry.get("annotations");
            annotations.is_some_and(|annotations| annotations.get(ATTESTED).is_some())
        });
        self.manifests.iter().zip(attests).filter(|(_, attests)| !attests).map(|(entry, _)| entry)
    }

    /// The attestations among its entries, each with the digest of what it is about and what that is for.
    pub fn attestations(&self) -> Vec<(Digest, Digest, Option<&Value>)> {
        let found = |entry: &Value| {
            let (digest, about) = attestation(entry.as_object()?)?;
            let subject =
                self.entries().find(|other| digest_of(other.get("digest")).as_ref() == Some(&about));
            Some((digest, about, subject.and_then(|subject| subject.get("platform"))))
        };
        self.entries().filter_map(found).collect()
    }

    /// The entries' descriptors.
    pub fn entries(&self) -> impl Iterator<Item = &Value> {
        self.object.get("manifests").and_then(Value::as_array).into_iter().flatten()
    }

    /// The document with `replaced`, by the digests of what they stand for.
    pub(super) fn replaced(&self, replaced: &HashMap<Digest, Stored>) -> Object {
        let mut index = self.object.clone();
        if let Some(Value::Array(entries)) = index.get_mut("manifests") {
            for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
                replace(entry, replaced);
            }
        }
        index
    }

    /// The index with `replaced`, by the digests of what they stand for.
    pub fn convert(&self, replaced: &HashMap<Digest, Stored>, oci_media_types: bool) -> Stored {
        self.convert_attested(replaced, &HashMap::new(), oci_media_types)
    }

    /// The same, with attestations by their own digests and by those of what they are about: two that say nothing of what
    /// that is may be the same document.
    pub fn convert_attested(
        &self,
        replaced: &HashMap<Digest, Stored>,
        attested: &HashMap<(Digest, Digest), Stored>,
        oci_media_types: bool,
    ) -> Stored {
        let mut index = self.object.clone();
        if let Some(Value::Array(entries)) = index.get_mut("manifests") {
            for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
                let attestation = attestation(entry).and_then(|key| attested.get(&key));
                replace(entry, replaced);
                if let Some(stored) = attestation {
                    put(entry, stored);
                }
            }
        }
        Stored::index(index, if oci_media_types { OCI_INDEX } else { DOCKER_INDEX })
    }
}

pub(super) fn digest_of(value: Option<&Value>) -> Option<Digest> {
    value?.as_str()?.parse().ok()
}

/// The digests of an attestation's entry and of what it is about.
pub(super) fn attestation(entry: &Object) -> Option<(Digest, Digest)> {
    let about = digest_of(entry.get("annotations").and_then(|annotations| annotations.get(ATTESTED)))?;
    Some((digest_of(entry.get("digest"))?, about))
}

/// Has an entry name `stored`.
fn put(entry: &mut Object, stored: &Stored) {
    entry.insert("mediaType".to_owned(), json!(stored.media_type));
    entry.insert("digest".to_owned(), json!(stored.digest.as_ref()));
    entry.insert("size".to_owned(), json!(stored.content.len()));
}

fn replace(entry: &mut Object, replaced: &HashMap<Digest, Stored>) {
    let find = |value: Option<&Value>| digest_of(value).and_then(|digest| replaced.get(&digest));
    if let Some(stored) = find(entry.get("digest")) {
        put(entry, stored);
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
                {"mediaType": "old", "digest": image.as_ref(), "size": 1, "platform": {"os": "linux", "architecture": "arm"}},
                {"mediaType": "kept", "digest": attestation.as_ref(), "size": 2,
                 "annotations": {ATTESTED: image.as_ref(), "vnd.docker.reference.type": "attestation-manifest"}},
            ],
        });
        let source = Index::parse(&serde_json::to_vec(&index).unwrap()).unwrap();
        let digests: Vec<_> = source.manifests.iter().map(Descriptor::digest).collect();
        assert_eq!(digests, [&image, &attestation]);
        let content = bytes::Bytes::from_static(b"converted");
        let new = Stored { media_type: "new".to_owned(), digest: sha256(&content), content };
        let converted = source.convert(&HashMap::from([(image, new.clone())]), true);
        assert_eq!(converted.digest, sha256(&converted.content));
        let converted: Value = serde_json::from_slice(&converted.content).unwrap();
        let entries = &converted["manifests"];
        assert_eq!(
            entries[0],
            json!({
                "mediaType": "new", "digest": new.digest.as_ref(), "size": 9,
                "platform": {"os": "linux", "architecture": "arm"},
            })
        );
        assert_eq!(entries[1]["digest"], attestation.as_ref());
        assert_eq!(entries[1]["annotations"][ATTESTED], new.digest.as_ref());
        assert_eq!((&converted["mediaType"], &converted["x-unknown"]), (&json!(OCI_INDEX), &json!(true)));
    }

    #[test]
    fn what_is_left_out_takes_its_attestations_along() {
        let (a, b, about_a) = (sha256(b"a"), sha256(b"b"), sha256(b"about a"));
        let entry = |digest: &Digest, annotations: Value| json!({"mediaType": "m", "digest": digest.as_ref(), "size": 1, "annotations": annotations});
        let index = json!({"manifests": [
            entry(&a, json!(null)), entry(&b, json!({})), entry(&about_a, json!({ATTESTED: a.as_ref()})),
        ]});
        let mut source = Index::parse(&serde_json::to_vec(&index).unwrap()).unwrap();
        source.retain(|number| number != 0);
        assert_eq!(source.manifests.iter().map(Descriptor::digest).collect::<Vec<_>>(), [&b]);
    }

    #[test]
    fn an_index_without_manifests_is_an_error() {
        assert!(Index::parse(b"{}").is_err());
    }
}
