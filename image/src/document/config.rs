//! The image config: the source's, with the diff ids of the nydus layers and one more entry of history.

use registry::digest::Digest;
use serde_json::{Value, json};

use super::{DocumentError, Object, parse, serialise};

pub(super) const CREATED_BY: &str = "nydus-cluster exporter";
const COMMENT: &str = "RAFS v6 bootstrap";

/// The config for an image of `blobs` and, on top, the bootstrap with `bootstrap_diff_id`.
pub(crate) fn convert(
    source: &[u8],
    blobs: &[&Digest],
    bootstrap_diff_id: &Digest,
) -> Result<bytes::Bytes, DocumentError> {
    let mut config = parse("image config", source)?;
    // A blob is no tar; its diff id is its digest.
    let diff_ids: Vec<&str> = blobs.iter().copied().chain([bootstrap_diff_id]).map(AsRef::as_ref).collect();
    let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
    config.insert("rootfs".to_owned(), rootfs);
    let history = history(&config, blobs.len());
    config.insert("history".to_owned(), Value::Array(history));
    Ok(serialise(&config))
}

/// The diff ids of an image config's layers, the lowest first.
pub fn diff_ids(config: &[u8]) -> Result<Vec<String>, DocumentError> {
    let config = Value::Object(parse("image config", config)?);
    let ids = config.pointer("/rootfs/diff_ids").and_then(Value::as_array);
    let ids = ids.ok_or_else(|| DocumentError::new("image config", "it has no rootfs.diff_ids"))?;
    Ok(ids.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// The source's history, so that there is one entry that is not empty for each layer, and the bootstrap's.
fn history(config: &Object, layers: usize) -> Vec<Value> {
    let mut history = config.get("history").and_then(Value::as_array).cloned().unwrap_or_default();
    let is_layer = |entry: &&Value| !entry.get("empty_layer").and_then(Value::as_bool).unwrap_or(false);
    // A source without history, or with a wrong one: layers nobody knows the origin of.
    for _ in history.iter().filter(is_layer).count()..layers {
        history.push(json!({ "comment": "layer without history" }));
    }
    let mut bootstrap = json!({ "created_by": CREATED_BY, "comment": COMMENT });
    // The source's time: the same input is to give the same image.
    if let (Some(created), Some(entry)) = (config.get("created"), bootstrap.as_object_mut()) {
        entry.insert("created".to_owned(), created.clone());
    }
    history.push(bootstrap);
    history
}

#[cfg(test)]
mod tests {
    use registry::digest::sha256;

    use super::*;

    fn converted(source: &Value, layers: u8) -> Value {
        let blobs: Vec<_> = (0..layers).map(|number| sha256(&[number])).collect();
        let config = convert(
            &serde_json::to_vec(source).unwrap(),
            &blobs.iter().collect::<Vec<_>>(),
            &sha256(b"boot"),
        );
        serde_json::from_slice(&config.unwrap()).unwrap()
    }

    fn layers_of_history(config: &Value) -> usize {
        let history = config["history"].as_array().unwrap();
        history.iter().filter(|entry| entry.get("empty_layer") != Some(&json!(true))).count()
    }

    #[test]
    fn unknown_members_stay_and_diff_ids_are_those_of_the_blobs_and_the_bootstrap() {
        let source = json!({
            "architecture": "amd64", "config": {"Cmd": ["sh"], "x-unknown": 1}, "created": "2026-01-01T00:00:00Z",
            "rootfs": {"type": "layers", "diff_ids": ["sha256:old"]},
            "history": [{"created_by": "COPY"}, {"created_by": "ENV", "empty_layer": true}],
        });
        let config = converted(&source, 1);
        assert_eq!(config["config"], source["config"]);
        assert_eq!(config["rootfs"]["diff_ids"], json!([sha256(&[0]).as_ref(), sha256(b"boot").as_ref()]));
        assert_eq!(layers_of_history(&config), 2);
        assert_eq!(config["history"][2]["created"], source["created"]);
    }

    #[test]
    fn history_has_an_entry_for_each_layer_even_if_the_source_has_none() {
        assert_eq!(layers_of_history(&converted(&json!({"architecture": "arm64"}), 3)), 4);
    }

    #[test]
    fn a_config_that_is_no_object_is_an_error() {
        assert!(convert(b"[]", &[], &sha256(b"boot")).is_err());
    }
}
