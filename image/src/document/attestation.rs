//! An attestation as BuildKit makes them: a manifest of in-toto statements about another manifest, which have to name the
//! manifest that is in the registry.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use registry::client::Descriptor;
use registry::digest::{self, Digest};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::{DocumentError, EMPTY_CONFIG, Manifest, Parsed, Stored, parse, serialise};

/// The name of a subject that has none.
const NO_NAME: &str = "_";

/// An attestation.
#[derive(Clone, Debug)]
pub struct Attestation {
    manifest: Manifest,
    /// Digest of the config.
    pub config: Digest,
    /// Digests of the statements.
    pub statements: Vec<Digest>,
}

/// What an attestation is about.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// Digest of the manifest that it was made for.
    pub source: &'a Digest,
    /// What that manifest became.
    pub stored: &'a Stored,
    /// What the subject is called, as package URLs; only for statements that name none.
    pub names: &'a [String],
}

/// An attestation about something else.
#[derive(Clone, Debug)]
pub struct Attested {
    /// Config and statements.
    pub blobs: Vec<Bytes>,
    /// The manifest.
    pub manifest: Stored,
}

impl Attestation {
    /// Reads a manifest; `None` if all of it is something else than in-toto statements.
    pub fn parse(json: &[u8]) -> Result<Option<Self>, DocumentError> {
        let Parsed::Manifest(manifest) = Parsed::parse(json)? else { return Ok(None) };
        if !manifest.is_attestation() {
            return Ok(None);
        }
        let statements = manifest.layers.iter().map(Descriptor::digest).cloned().collect();
        let config = manifest.config.digest().clone();
        Ok(Some(Self { manifest, config, statements }))
    }

    /// The attestation about `subject`, with the contents of its config and statements in `blobs`.
    pub fn about(
        &self,
        subject: &Subject<'_>,
        blobs: &HashMap<Digest, Bytes>,
    ) -> Result<Attested, DocumentError> {
        let find = |digest: &Digest| {
            blobs
                .get(digest)
                .ok_or_else(|| DocumentError::new("attestation", format!("blob {digest} is missing")))
        };
        // From the inside out: each document names those within it by digest.
        let mut changed = Vec::with_capacity(blobs.len());
        let mut replaced: BTreeMap<String, (Digest, usize)> = BTreeMap::new();
        for old in &self.statements {
            let content = statement(find(old)?, subject)?;
            replaced.insert(old.to_string(), (digest::sha256(&content), content.len()));
            changed.push(content);
        }
        let mut manifest = self.manifest.object().clone();
        for layer in manifest.get_mut("layers").and_then(Value::as_array_mut).into_iter().flatten() {
            let new = text(layer, "digest").and_then(|digest| replaced.get(digest));
            if let Some((digest, size)) = new {
                (layer["digest"], layer["size"]) = (json!(digest.as_ref()), json!(size));
            }
        }
        let config = config(find(&self.config)?, manifest.get("config"), &replaced)?;
        if let Some(descriptor) = manifest.get_mut("config") {
            let digest = digest::sha256(&config);
            (descriptor["digest"], descriptor["size"]) = (json!(digest.as_ref()), json!(config.len()));
        }
        changed.push(config);
        if manifest.contains_key("subject") {
            let of = subject.stored;
            let descriptor =
                json!({"mediaType": of.media_type, "digest": of.digest.as_ref(), "size": of.content.len()});
            manifest.insert("subject".to_owned(), descriptor);
        }
        let (media_type, content) = (self.manifest.media_type().to_owned(), serialise(&manifest));
        let digest = digest::sha256(&content);
        Ok(Attested { blobs: changed, manifest: Stored { media_type, content, digest } })
    }
}

fn text<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str)
}

/// The statement about `subject`. What it says of that stays byte for byte, however much it is.
fn statement(content: &[u8], subject: &Subject<'_>) -> Result<Bytes, DocumentError> {
    let wrong = |error| DocumentError::new("in-toto statement", error);
    let mut members: BTreeMap<String, &RawValue> = serde_json::from_slice(content).map_err(wrong)?;
    let mut subjects: Vec<Value> = match members.get("subject") {
        Some(subjects) => {
            serde_json::from_str::<Option<_>>(subjects.get()).map_err(wrong)?.unwrap_or_default()
        }
        None => Vec::new(),
    };
    let (old, new) = (subject.source.digest(), subject.stored.digest.digest());
    for one in &mut subjects {
        if one.pointer("/digest/sha256").and_then(Value::as_str) == Some(old) {
            one["digest"] = json!({ "sha256": new });
        }
    }
    if subjects.is_empty() {
        let mut names: Vec<&str> = subject.names.iter().map(String::as_str).collect();
        if names.is_empty() {
            names.push(NO_NAME);
        }
        subjects.extend(names.iter().map(|name| json!({"name": name, "digest": {"sha256": new}})));
    }
    let subjects = to_raw_value(&subjects).map_err(wrong)?;
    members.insert("subject".to_owned(), &subjects);
    serde_json::to_vec(&members).map(Bytes::from).map_err(wrong)
}

/// The config, whose diff ids are the statements' digests.
fn config(
    content: &Bytes,
    descriptor: Option<&Value>,
    replaced: &BTreeMap<String, (Digest, usize)>,
) -> Result<Bytes, DocumentError> {
    if descriptor.and_then(|descriptor| text(descriptor, "mediaType")) == Some(EMPTY_CONFIG) {
        return Ok(content.clone());
    }
    let mut config = Value::Object(parse("attestation config", content)?);
    let ids = config.pointer_mut("/rootfs/diff_ids").and_then(Value::as_array_mut);
    for id in ids.into_iter().flatten() {
        if let Some((digest, _)) = id.as_str().and_then(|id| replaced.get(id)) {
            *id = json!(digest.as_ref());
        }
    }
    Ok(config.to_string().into())
}

#[cfg(test)]
mod tests {
    use registry::digest::sha256;

    use super::super::kind::IN_TOTO as STATEMENT;
    use super::super::{OCI_CONFIG, OCI_MANIFEST};
    use super::*;

    fn described(media_type: &str, content: &[u8]) -> Value {
        json!({"mediaType": media_type, "digest": sha256(content).as_ref(), "size": content.len()})
    }

    /// The attestation of a manifest with these subjects, rewritten.
    fn rewritten(subjects: &Value, artifact: bool) -> (Value, Attested) {
        let statement = json!({"_type": "t", "subject": subjects, "predicateType": "p", "predicate": {"z": 1, "a": 1.50}});
        let statement = Bytes::from(statement.to_string());
        let config = match artifact {
            true => Bytes::from_static(b"{}"),
            false => Bytes::from(json!({"rootfs": {"diff_ids": [sha256(&statement).as_ref()]}}).to_string()),
        };
        let config_type = if artifact { EMPTY_CONFIG } else { OCI_CONFIG };
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described(config_type, &config),
            "layers": [described(STATEMENT, &statement)],
        });
        if artifact {
            manifest["subject"] = described(OCI_MANIFEST, b"plain");
        }
        let attestation = Attestation::parse(manifest.to_string().as_bytes()).unwrap().unwrap();
        let blobs = HashMap::from([(sha256(&statement), statement), (sha256(&config), config)]);
        let content = Bytes::from_static(b"nydus");
        let stored = Stored { media_type: "m".to_owned(), digest: sha256(&content), content };
        let names = ["pkg:docker/app@v1".to_owned()];
        let subject = Subject { source: &sha256(b"plain"), stored: &stored, names: &names };
        let attested = attestation.about(&subject, &blobs).unwrap();
        (serde_json::from_slice(&attested.manifest.content).unwrap(), attested)
    }

    #[test]
    fn statements_and_subject_name_what_is_stored_and_all_digests_fit() {
        let nydus = sha256(b"nydus");
        let other = json!({"name": "other", "digest": {"sha256": "0"}});
        let plain = json!({"name": "x", "digest": {"sha256": sha256(b"plain").digest()}});
        for (subjects, expected) in [
            (json!(null), json!([{"name": "pkg:docker/app@v1", "digest": {"sha256": nydus.digest()}}])),
            (json!([other, plain]), json!([other, {"name": "x", "digest": {"sha256": nydus.digest()}}])),
        ] {
            for artifact in [true, false] {
                let (manifest, attested) = rewritten(&subjects, artifact);
                let [statement, config] = &attested.blobs[..] else { panic!("other blobs") };
                let parsed: Value = serde_json::from_slice(statement).unwrap();
                assert_eq!(parsed["subject"], expected);
                assert!(String::from_utf8_lossy(statement).contains(r#""predicate":{"#));
                assert_eq!(manifest["layers"][0], described(STATEMENT, statement));
                assert_eq!(manifest["config"]["digest"], sha256(config).as_ref());
                if artifact {
                    assert_eq!(manifest["subject"], described("m", b"nydus"));
                } else {
                    let config: Value = serde_json::from_slice(config).unwrap();
                    assert_eq!(config["rootfs"]["diff_ids"][0], sha256(statement).as_ref());
                }
            }
        }
    }

    #[test]
    fn what_is_no_attestation_is_told_apart() {
        let image = json!({"config": described(OCI_CONFIG, b""), "layers": [described("application/vnd.oci.image.layer.v1.tar", b"")]});
        assert!(Attestation::parse(image.to_string().as_bytes()).unwrap().is_none());
        assert!(Attestation::parse(b"{}").unwrap().is_none());
    }
}
