//! An image's documents with one layer more.

use bytes::Bytes;
use registry::digest;
use serde_json::{Value, json};

use super::{DOCKER_MANIFEST, DocumentError, parse, serialise};

const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

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
}
