//! An image whose layers become one: its documents, as they would be if it had been built so.

use bytes::Bytes;
use serde_json::{Value, json};

use super::config::CREATED_BY;
use super::{DocumentError, parse, serialise};

/// The manifest and the config with one layer, which stands for all that there are; without layers as they are. The history
/// still says what was done, but no step of it has a layer of its own any more.
///
/// # Errors
///
/// When one of them is no JSON object.
pub fn flattened(manifest: &[u8], config: &[u8]) -> Result<(Bytes, Bytes), DocumentError> {
    let mut manifest = parse("manifest", manifest)?;
    let mut config = parse("image config", config)?;
    let layers = manifest.get_mut("layers").and_then(Value::as_array_mut);
    let Some(layers) = layers.filter(|layers| !layers.is_empty()) else {
        return Ok((serialise(&manifest), serialise(&config)));
    };
    layers.truncate(1);
    let ids = config.get_mut("rootfs").and_then(|rootfs| rootfs.get_mut("diff_ids"));
    if let Some(ids) = ids.and_then(Value::as_array_mut) {
        ids.truncate(1);
    }
    let mut history = config.get("history").and_then(Value::as_array).cloned().unwrap_or_default();
    for step in history.iter_mut().filter_map(Value::as_object_mut) {
        step.insert("empty_layer".to_owned(), json!(true));
    }
    history.push(json!({ "created_by": CREATED_BY, "comment": "all layers as one" }));
    config.insert("history".to_owned(), Value::Array(history));
    Ok((serialise(&manifest), serialise(&config)))
}

#[cfg(test)]
mod tests {
    use super::super::with_layer;
    use super::*;

    fn values((manifest, config): (Bytes, Bytes)) -> (Value, Value) {
        (serde_json::from_slice(&manifest).unwrap(), serde_json::from_slice(&config).unwrap())
    }

    #[test]
    fn history_is_kept_and_one_layer_is_left_on_which_another_may_come() {
        let manifest = json!({"layers": [{"digest": "sha256:0"}, {"digest": "sha256:1"}], "x-kept": 1});
        let config = json!({
            "rootfs": {"diff_ids": ["sha256:2", "sha256:3"]},
            "history": [{"created_by": "COPY"}, {"created_by": "RUN"}],
        });
        let flat = flattened(manifest.to_string().as_bytes(), config.to_string().as_bytes()).unwrap();
        let on_top = with_layer(&flat.0, &flat.1, b"tar", "a test").unwrap();
        let layers_of_history = |config: &Value| {
            let history = config["history"].as_array().unwrap();
            history.iter().filter(|step| step.get("empty_layer") != Some(&json!(true))).count()
        };
        for ((manifest, config), layers) in [(values(flat), 1), (values(on_top), 2)] {
            assert_eq!(manifest["layers"].as_array().unwrap().len(), layers);
            assert_eq!(manifest["x-kept"], 1);
            assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), layers);
            assert_eq!(layers_of_history(&config), layers);
            let steps = (&config["history"][0]["created_by"], &config["history"][1]["created_by"]);
            assert_eq!(steps, (&json!("COPY"), &json!("RUN")));
        }
    }

    #[test]
    fn an_image_without_layers_stays_so() {
        let (manifest, config) = values(flattened(br#"{"layers": []}"#, b"{}").unwrap());
        assert_eq!((manifest, config), (json!({"layers": []}), json!({})));
        assert!(flattened(b"[]", b"{}").is_err());
    }
}
