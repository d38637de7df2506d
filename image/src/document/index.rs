//! The index of an image of several platforms, or of one with attestations: the source's, naming the converted manifests.

use std::collections::HashMap;

use registry::client::Descriptor;
use registry::digest::Digest;
use registry::nydus;
use serde_json::{Value, json};

use super::descriptor::descriptors;
use super::{DOCKER_INDEX, DocumentError, OCI_INDEX, Object, parse, parsed, serialise};

/// Annotation by which an attestation names the manifest that it is about.
const ATTESTED: &str = "vnd.docker.reference.digest";

/// Annotation by which an entry says that it is an attestation, and how.
const ATTESTATION_TYPE: &str = "vnd.docker.reference.type";
const ATTESTATION_MANIFEST: &str = "attestation-manifest";

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
}

/// An index whose entries may be replaced.
#[derive(Clone, Debug)]
pub struct Index {
    object: Object,
    /// Its entries.
    pub manifests: Vec<Descriptor>,
}

/// A nydus image, and the plain one that it stands next to.
#[derive(Clone, Debug)]
pub struct Beside {
    /// Digest of the plain manifest.
    pub plain: Digest,
    /// The nydus manifest.
    pub nydus: Stored,
    /// What both are for, as an index's entry says it.
    pub platform: Value,
    /// Attestations about the nydus manifest.
    pub attested: Vec<Stored>,
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

    /// Takes out the nydus images that stand next to plain ones, and what attests them.
    pub fn leave_out_nydus(&mut self) {
        let nydus: Vec<bool> = self.marked().map(|(_, is_nydus)| is_nydus).collect();
        self.retain(|number| nydus.get(number) != Some(&true));
    }

    /// The index with the nydus images of its plain ones behind those, so that clients that take the first for their
    /// platform take a plain one; nested indexes, and attestations of plain images, are replaced.
    pub fn with_nydus(&self, nydus: &[Beside], replaced: &HashMap<Digest, Stored>) -> Stored {
        let mut index = self.object.clone();
        index.insert("mediaType".to_owned(), json!(OCI_INDEX));
        if let Some(Value::Array(entries)) = index.get_mut("manifests") {
            for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
                replace(entry, replaced);
            }
            entries.extend(nydus.iter().map(nydus_entry));
            entries.extend(nydus.iter().flat_map(attestations_of));
        }
        let content = serialise(&index);
        let digest = registry::digest::sha256(&content);
        Stored { media_type: OCI_INDEX.to_owned(), content, digest }
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
        let media_type = if oci_media_types { OCI_INDEX } else { DOCKER_INDEX };
        let mut index = self.object.clone();
        index.insert("mediaType".to_owned(), json!(media_type));
        if let Some(Value::Array(entries)) = index.get_mut("manifests") {
            for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
                let attestation = attestation(entry).and_then(|key| attested.get(&key));
                replace(entry, replaced);
                if let Some(stored) = attestation {
                    put(entry, stored);
                }
            }
        }
        let content = serialise(&index);
        let digest = registry::digest::sha256(&content);
        Stored { media_type: media_type.to_owned(), content, digest }
    }
}

fn digest_of(value: Option<&Value>) -> Option<Digest> {
    value?.as_str()?.parse().ok()
}

/// The digests of an attestation's entry and of what it is about.
fn attestation(entry: &Object) -> Option<(Digest, Digest)> {
    let about = digest_of(entry.get("annotations").and_then(|annotations| annotations.get(ATTESTED)))?;
    Some((digest_of(entry.get("digest"))?, about))
}

/// Has an entry name `stored`.
fn put(entry: &mut Object, stored: &Stored) {
    entry.insert("mediaType".to_owned(), json!(stored.media_type));
    entry.insert("digest".to_owned(), json!(stored.digest.as_ref()));
    entry.insert("size".to_owned(), json!(stored.content.len()));
}

/// The entry of a nydus image next to a plain one: marked for those who know artifact types, and for those who do not.
fn nydus_entry(image: &Beside) -> Value {
    let mut platform = image.platform.clone();
    if let Some(platform) = platform.as_object_mut() {
        let features = platform.entry("os.features").or_insert_with(|| json!([]));
        if let Some(features) = features.as_array_mut() {
            features.push(json!(nydus::OS_FEATURE));
        }
    }
    json!({
        "mediaType": image.nydus.media_type,
        "artifactType": nydus::ARTIFACT_TYPE_MANIFEST,
        "digest": image.nydus.digest.as_ref(),
        "size": image.nydus.content.len(),
        "platform": platform,
        "annotations": { nydus::ANNOTATION_SOURCE_DIGEST: image.plain.as_ref() },
    })
}

/// The entries of the attestations of a nydus image next to a plain one.
fn attestations_of(image: &Beside) -> impl Iterator<Item = Value> + '_ {
    image.attested.iter().map(|attestation| {
        let mut entry = attestation.descriptor();
        entry["annotations"] =
            json!({ ATTESTED: image.nydus.digest.as_ref(), ATTESTATION_TYPE: ATTESTATION_MANIFEST });
        entry["platform"] = json!({ "architecture": "unknown", "os": "unknown" });
        entry
    })
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
    fn nydus_images_stand_behind_the_plain_ones_marked_in_both_ways() {
        let plain = json!({"mediaType": "plain", "digest": sha256(b"plain").as_ref(), "size": 1,
            "platform": {"os": "linux", "architecture": "amd64"}});
        let content = bytes::Bytes::from_static(b"nydus");
        let nydus = Stored { media_type: "m".to_owned(), digest: sha256(&content), content };
        let attested = vec![Stored { digest: sha256(b"about nydus"), ..nydus.clone() }];
        let platform = plain["platform"].clone();
        let pair = Beside { plain: sha256(b"plain"), nydus, platform, attested };
        let stored = Index::of(&plain).with_nydus(&[pair], &HashMap::new());
        let index: Value = serde_json::from_slice(&stored.content).unwrap();
        assert_eq!(index["manifests"][2]["annotations"][ATTESTED], index["manifests"][1]["digest"]);
        let mut again = Index::parse(&stored.content).unwrap();
        again.leave_out_nydus();
        assert_eq!(again.entries().collect::<Vec<_>>(), [&plain]);
        assert_eq!(index["manifests"][0], plain);
        let entry = &index["manifests"][1];
        assert_eq!(entry["platform"]["os.features"], json!([nydus::OS_FEATURE]));
        assert_eq!(entry["platform"]["architecture"], "amd64");
        assert_eq!(entry["artifactType"], nydus::ARTIFACT_TYPE_MANIFEST);
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
