//! An image's documents with more in them: a layer, labels.

use std::collections::BTreeMap;

use bytes::Bytes;
use registry::digest;
use registry::media_types::{DOCKER_LAYER, OCI_LAYER};
use serde_json::{Value, json};

use super::{DOCKER_MANIFEST, DocumentError, Object, parse, serialise};

/// Manifest and config of an image with the uncompressed tar `layer` on top. The manifest's config is not replaced.
///
/// # Errors
///
/// When one of the documents is none.
pub fn with_layer(
    manifest: &[u8],
    config: &[u8],
    layer: &[u8],
    created_by: &str,
) -> Result<(Bytes, Bytes), DocumentError> {
    let mut manifest = parse("manifest", manifest)?;
    let mut config = parse("image config", config)?;
    let digest = digest::sha256(layer);
    let is_docker = manifest.get("mediaType").and_then(Value::as_str) == Some(DOCKER_MANIFEST);
    let media_type = if is_docker { DOCKER_LAYER } else { OCI_LAYER };
    let descriptor = json!({"mediaType": media_type, "digest": digest.as_ref(), "size": layer.len()});
    let layers = list(manifest.get_mut("layers"));
    layers.ok_or_else(|| DocumentError::new("manifest", "it has no layers"))?.push(descriptor);
    let ids = list(config.get_mut("rootfs").and_then(|rootfs| rootfs.get_mut("diff_ids")));
    ids.ok_or_else(|| DocumentError::new("image config", "it has no diff ids"))?.push(digest.as_ref().into());
    if let Some(history) = config.get_mut("history").and_then(Value::as_array_mut) {
        history.push(json!({"created_by": created_by}));
    }
    Ok((serialise(&manifest), serialise(&config)))
}

/// A config of an image with these labels too; those that it has stay as they are.
///
/// # Errors
///
/// When it is none.
pub fn with_labels(config: &[u8], labels: &BTreeMap<String, String>) -> Result<Bytes, DocumentError> {
    let wrong = || DocumentError::new("image config", "its config or its labels are no object");
    let mut config = parse("image config", config)?;
    let inner = object(config.entry("config").or_insert(Value::Null)).ok_or_else(wrong)?;
    let own = object(inner.entry("Labels").or_insert(Value::Null)).ok_or_else(wrong)?;
    for (name, value) in labels {
        own.entry(name).or_insert_with(|| value.as_str().into());
    }
    Ok(serialise(&config))
}

/// An object to be added to. An empty one may be written as `null`.
fn object(value: &mut Value) -> Option<&mut Object> {
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut()
}

/// A list to be added to. An empty one may be written as `null`.
fn list(value: Option<&mut Value>) -> Option<&mut Vec<Value>> {
    let value = value?;
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_comes_on_top_in_both_documents() {
        let manifest = json!({"layers": [{"digest": "sha256:0"}], "x-kept": 1}).to_string();
        let config =
            json!({"rootfs": {"diff_ids": ["sha256:1"]}, "history": [{}], "os": "linux"}).to_string();
        let (manifest, config) =
            with_layer(manifest.as_bytes(), config.as_bytes(), b"tar", "a test").unwrap();
        let (manifest, config): (Value, Value) =
            (serde_json::from_slice(&manifest).unwrap(), serde_json::from_slice(&config).unwrap());
        let digest = digest::sha256(b"tar");
        assert_eq!(manifest["layers"][1]["digest"], digest.as_ref());
        assert_eq!((&manifest["x-kept"], &config["os"]), (&json!(1), &json!("linux")));
        assert_eq!(config["rootfs"]["diff_ids"], json!(["sha256:1", digest.as_ref()]));
        assert_eq!(config["history"][1]["created_by"], "a test");
        assert!(with_layer(b"{}", b"{}", b"tar", "a test").is_err());
        let empty = (br#"{"layers": null}"#, br#"{"rootfs": {"diff_ids": null}}"#);
        let (manifest, config) = with_layer(empty.0, empty.1, b"tar", "a test").unwrap();
        let (manifest, config): (Value, Value) =
            (serde_json::from_slice(&manifest).unwrap(), serde_json::from_slice(&config).unwrap());
        assert_eq!(manifest["layers"][0]["digest"], digest.as_ref());
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest.as_ref()]));
    }
    #[test]
    fn labels_are_added_to_those_that_there_are() {
        let labels = [("a", "new"), ("b", "new")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let added = |config: Value| -> Value {
            let added = with_labels(config.to_string().as_bytes(), &labels.clone().into()).unwrap();
            serde_json::from_slice(&added).unwrap()
        };
        let kept = added(json!({"os": "linux", "config": {"Cmd": ["x"], "Labels": {"a": "old"}}}));
        let expected = json!({"Cmd": ["x"], "Labels": {"a": "old", "b": "new"}});
        assert_eq!((&kept["os"], &kept["config"]), (&json!("linux"), &expected));
        for empty in [json!({}), json!({"config": null}), json!({"config": {"Labels": null}})] {
            assert_eq!(added(empty)["config"]["Labels"], json!({"a": "new", "b": "new"}));
        }
        assert!(with_labels(br#"{"config": {"Labels": []}}"#, &labels.into()).is_err());
    }
}
