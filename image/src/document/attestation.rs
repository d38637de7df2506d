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
    /// The config.
    pub config: Bytes,
    /// The manifest.
    pub manifest: Stored,
}

/// Digest and size in bytes of each statement that was rewritten by [`statement_about`], by the digest that it had.
pub type Rewritten = HashMap<Digest, (Digest, u64)>;

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

    /// The attestation about `subject`, whose statements have been rewritten to be about it, with the content of its config.
    pub fn about(
        &self,
        subject: &Subject<'_>,
        content: &Bytes,
        statements: &Rewritten,
    ) -> Result<Attested, DocumentError> {
        let of = |name: &str| statements.get(&name.parse::<Digest>().ok()?);
        let mut manifest = self.manifest.object().clone();
        for layer in manifest.get_mut("layers").and_then(Value::as_array_mut).into_iter().flatten() {
            let new = text(layer, "digest").and_then(of);
            if let Some((digest, size)) = new {
                (layer["digest"], layer["size"]) = (json!(digest.as_ref()), json!(size));
            }
        }
        let config = config(content, manifest.get("config"), of)?;
        if let Some(descriptor) = manifest.get_mut("config") {
            let digest = digest::sha256(&config);
            (descriptor["digest"], descriptor["size"]) = (json!(digest.as_ref()), json!(config.len()));
        }
        if manifest.contains_key("subject") {
            let of = subject.stored;
            let descriptor =
                json!({"mediaType": of.media_type, "digest": of.digest.as_ref(), "size": of.content.len()});
            manifest.insert("subject".to_owned(), descriptor);
        }
        let (media_type, content) = (self.manifest.media_type().to_owned(), serialise(&manifest));
        let digest = digest::sha256(&content);
        Ok(Attested { config, manifest: Stored { media_type, content, digest } })
    }
}

fn text<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str)
}

/// The in-toto statement `content`, about `subject`. What it says of that stays byte for byte, however much it is.
///
/// # Errors
///
/// When it is no such statement.
pub fn statement_about(content: &[u8], subject: &Subject<'_>) -> Result<Bytes, DocumentError> {
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
    // One that grew as it is written would be in memory twice.
    let mut written = Vec::with_capacity(content.len() + subjects.get().len());
    serde_json::to_writer(&mut written, &members).map_err(wrong)?;
    Ok(written.into())
}

/// The config, whose diff ids are the statements' digests; `of` says what those have become.
fn config<'a>(
    content: &Bytes,
    descriptor: Option<&Value>,
    of: impl Fn(&str) -> Option<&'a (Digest, u64)>,
) -> Result<Bytes, DocumentError> {
    if descriptor.and_then(|descriptor| text(descriptor, "mediaType")) == Some(EMPTY_CONFIG) {
        return Ok(content.clone());
    }
    let mut config = Value::Object(parse("attestation config", content)?);
    let ids = config.pointer_mut("/rootfs/diff_ids").and_then(Value::as_array_mut);
    for id in ids.into_iter().flatten() {
        if let Some((digest, _)) = id.as_str().and_then(&of) {
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
    fn rewritten(subjects: &Value, artifact: bool) -> (Value, [Bytes; 2]) {
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
        let content = Bytes::from_static(b"nydus");
        let stored = Stored { media_type: "m".to_owned(), digest: sha256(&content), content };
        let names = ["pkg:docker/app@v1".to_owned()];
        let subject = Subject { source: &sha256(b"plain"), stored: &stored, names: &names };
        let new = statement_about(&statement, &subject).unwrap();
        let statements = Rewritten::from([(sha256(&statement), (sha256(&new), new.len() as u64))]);
        let attested = attestation.about(&subject, &config, &statements).unwrap();
        (serde_json::from_slice(&attested.manifest.content).unwrap(), [new, attested.config])
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
                let (manifest, [statement, config]) = rewritten(&subjects, artifact);
                let parsed: Value = serde_json::from_slice(&statement).unwrap();
                assert_eq!(parsed["subject"], expected);
                assert!(String::from_utf8_lossy(&statement).contains(r#""predicate":{"#));
                assert_eq!(manifest["layers"][0], described(STATEMENT, &statement));
                assert_eq!(manifest["config"]["digest"], sha256(&config).as_ref());
                if artifact {
                    assert_eq!(manifest["subject"], described("m", b"nydus"));
                } else {
                    let config: Value = serde_json::from_slice(&config).unwrap();
                    assert_eq!(config["rootfs"]["diff_ids"][0], sha256(&statement).as_ref());
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
