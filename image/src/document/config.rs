//! The image config: what it says, and the one that a converted image gets, with the diff ids of the nydus layers and one
//! more entry of history.

use registry::digest::Digest;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{DocumentError, Object, parse, serialise};
use crate::platform::PlatformName;

const NAME: &str = "image config";

pub(super) const CREATED_BY: &str = "nydus-cluster exporter";
const COMMENT: &str = "RAFS v6 bootstrap";

/// An image config, as far as it matters here.
#[derive(Clone, Debug)]
pub struct ImageConfig(Object);

impl ImageConfig {
    /// Reads a config.
    ///
    /// # Errors
    ///
    /// When it is no JSON object.
    pub fn parse(json: &[u8]) -> Result<Self, DocumentError> {
        parse(NAME, json).map(Self)
    }

    /// The platform that the image is for.
    ///
    /// # Errors
    ///
    /// When it states none.
    pub fn platform(&self) -> Result<PlatformName, DocumentError> {
        let text = |name: &str| self.0.get(name).and_then(Value::as_str);
        let stated =
            |name| text(name).ok_or_else(|| DocumentError::new(NAME, format!("it states no {name}")));
        Ok(PlatformName::stated(stated("os")?, stated("architecture")?, text("variant")))
    }

    /// The diff ids of the layers, the lowest first. Builders leave the list out where there are none.
    ///
    /// # Errors
    ///
    /// When one is no digest.
    pub fn diff_ids(&self) -> Result<Vec<Digest>, DocumentError> {
        let ids = self.0.get("rootfs").and_then(|rootfs| rootfs.get("diff_ids"));
        let ids = match ids {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(ids) => ids.as_array(),
        };
        let ids = ids.ok_or_else(|| DocumentError::new(NAME, "rootfs.diff_ids: expected a list"))?;
        let digest = |id: &Value| {
            let wrong = || DocumentError::new(NAME, format!("rootfs.diff_ids: {id} is no digest"));
            id.as_str().and_then(|id| id.parse().ok()).ok_or_else(wrong)
        };
        ids.iter().map(digest).collect()
    }

    /// What is to be run, and how: its member `config`, read as a `T`.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn settings<T: DeserializeOwned>(&self) -> Result<Option<T>, DocumentError> {
        let settings = self.0.get("config").map(Option::<T>::deserialize).transpose();
        settings.map(Option::flatten).map_err(|error| DocumentError::new(NAME, format!("config: {error}")))
    }
}

/// The config for an image of `blobs` and, on top, the bootstrap with `bootstrap_diff_id`.
pub(crate) fn convert(
    source: &[u8],
    blobs: &[&Digest],
    bootstrap_diff_id: &Digest,
) -> Result<bytes::Bytes, DocumentError> {
    let mut config = parse(NAME, source)?;
    // A blob is no tar; its diff id is its digest.
    let diff_ids: Vec<&str> = blobs.iter().copied().chain([bootstrap_diff_id]).map(AsRef::as_ref).collect();
    let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
    config.insert("rootfs".to_owned(), rootfs);
    let history = history(&config, blobs.len());
    config.insert("history".to_owned(), Value::Array(history));
    Ok(serialise(&config))
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
    fn what_a_config_states_is_read_and_what_is_wrong_is_named() {
        let id = sha256(b"layer");
        let config = json!({
            "os": "linux", "architecture": "arm", "variant": "v7", "config": null,
            "rootfs": {"type": "layers", "diff_ids": [id.as_ref()]},
        });
        let read = |config: &Value| ImageConfig::parse(config.to_string().as_bytes()).unwrap();
        assert_eq!(read(&config).platform().unwrap().to_string(), "linux/arm/v7");
        assert_eq!(read(&config).diff_ids().unwrap(), [id]);
        assert!(read(&config).settings::<Vec<u8>>().unwrap().is_none());
        for none in [json!({}), json!({"rootfs": {}}), json!({"rootfs": {"diff_ids": null}})] {
            assert!(read(&none).diff_ids().unwrap().is_empty());
        }
        let error = read(&json!({"os": "linux"})).platform().unwrap_err().to_string();
        assert_eq!(error, "image config: it states no architecture");
        let error = read(&json!({"rootfs": {"diff_ids": ["x"]}})).diff_ids().unwrap_err().to_string();
        assert_eq!(error, "image config: rootfs.diff_ids: \"x\" is no digest");
        assert!(read(&json!({"config": 1})).settings::<Vec<u8>>().is_err());
    }

    #[test]
    fn a_config_that_is_no_object_is_an_error() {
        assert!(convert(b"[]", &[], &sha256(b"boot")).is_err());
        assert!(ImageConfig::parse(b"[]").is_err());
    }
}
