//! What images say of themselves, united. Both systems have these rules:
//!
//! | said | of several |
//! |---|---|
//! | labels, environment | the later image's, where two have one of the same name; `PATH` goes |
//! | `sealos.io.type` | `rootfs` if one of them is |
//! | entrypoint, command | one after the other |
//! | applications, launch commands, container images of sealer's annotations | one after the other, each once |
//! | all else of the config | the first image's |

use image::document::Object;
use serde_json::{Map, Value};

use crate::describe::{DescribeError, Description, Kind, Words as Strings};
use crate::saved::IMAGES_ANNOTATION;

/// What has been said so far.
#[derive(Default)]
pub(super) struct Statements {
    /// The first image's config.
    config: Option<Object>,
    labels: Strings,
    environment: Vec<(String, String)>,
    entrypoint: Vec<Value>,
    command: Vec<Value>,
    annotations: Strings,
    description: Option<Description>,
}

impl Statements {
    /// Adds what an image says in its config and its manifest.
    pub(super) fn add(&mut self, config: &Object, manifest: &Object) -> Result<(), DescribeError> {
        let inner = config.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
        let labels = strings(inner.get("Labels"));
        let annotations = strings(manifest.get("annotations"));
        let said = Description::read(&labels, &annotations, None)?;
        self.description = Some(match self.description.take() {
            None => said,
            Some(before) => unite(before, said),
        });
        self.labels.extend(labels);
        self.annotations.extend(annotations);
        for pair in array(inner.get("Env")).iter().filter_map(Value::as_str) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match self.environment.iter_mut().find(|(other, _)| other == name) {
                Some((_, before)) => value.clone_into(before),
                None => self.environment.push((name.to_owned(), value.to_owned())),
            }
        }
        self.entrypoint.extend(array(inner.get("Entrypoint")));
        self.command.extend(array(inner.get("Cmd")));
        self.config.get_or_insert_with(|| config.clone());
        Ok(())
    }

    /// The config, without layers, and the annotations of the manifest.
    pub(super) fn finish(mut self) -> (Object, Object) {
        let mut config = self.config.take().unwrap_or_default();
        if let Some(description) = &self.description {
            if let Some(Kind::Rootfs) = description.kind {
                self.labels.extend(
                    description.labels().into_iter().filter(|(name, _)| name.starts_with("sealos.io.")),
                );
            }
            // An image that says nothing of sealer's is not to begin with it.
            if self.annotations.keys().any(|name| name.starts_with("sealer.image.")) {
                self.annotations.extend(description.annotations());
            }
        }
        // They are about one of the images that there were.
        let of_one = |name: &str| {
            name.starts_with("containerd.io/snapshot/nydus-source-") || name == IMAGES_ANNOTATION
        };
        self.annotations.retain(|name, _| !of_one(name));
        self.environment.retain(|(name, _)| name != "PATH");
        let environment = self.environment.iter().map(|(name, value)| format!("{name}={value}").into());
        let environment: Vec<Value> = environment.collect();
        let inner = config.entry("config").or_insert_with(|| Value::Object(Map::new()));
        if let Some(inner) = inner.as_object_mut() {
            let mut put = |name: &str, value: Vec<Value>| match value.is_empty() {
                true => drop(inner.remove(name)),
                false => drop(inner.insert(name.to_owned(), value.into())),
            };
            put("Env", environment);
            put("Entrypoint", self.entrypoint);
            put("Cmd", self.command);
            if !self.labels.is_empty() {
                inner.insert("Labels".to_owned(), object(self.labels).into());
            }
        }
        (config, object(self.annotations))
    }
}

/// What two images say in sealer's words, the later one's where there is one answer only.
fn unite(before: Description, after: Description) -> Description {
    let mut both = after.clone();
    both.kind = match (before.kind, after.kind) {
        (Some(Kind::Rootfs), _) | (_, Some(Kind::Rootfs)) => Some(Kind::Rootfs),
        (before, after) => after.or(before),
    };
    both.version = after.version.or(before.version);
    both.kube_versions = after.kube_versions.or(before.kube_versions);
    for (both, before) in [
        (&mut both.container_runtime, before.container_runtime),
        (&mut both.cluster_runtime, before.cluster_runtime),
    ] {
        both.name = both.name.take().or(before.name);
        both.version = both.version.take().or(before.version);
    }
    both.applications = each_once(before.applications, after.applications);
    both.images = each_once(before.images, after.images);
    both.launch.cmds = each_once(before.launch.cmds, after.launch.cmds);
    both.launch.app_names = each_once(before.launch.app_names, after.launch.app_names);
    both
}

fn each_once<T: PartialEq>(mut before: Vec<T>, after: Vec<T>) -> Vec<T> {
    for one in after {
        if !before.contains(&one) {
            before.push(one);
        }
    }
    before
}

fn array(value: Option<&Value>) -> Vec<Value> {
    value.and_then(Value::as_array).cloned().unwrap_or_default()
}

fn strings(value: Option<&Value>) -> Strings {
    let all = value.and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

fn object(strings: Strings) -> Object {
    strings.into_iter().map(|(name, value)| (name, value.into())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(images: &[(Value, Value)]) -> (Value, Value) {
        let mut words = Statements::default();
        for (config, annotations) in images {
            let config = json!({"os": "linux", "config": config});
            let manifest = json!({ "annotations": annotations });
            words.add(config.as_object().unwrap(), manifest.as_object().unwrap()).unwrap();
        }
        let (config, annotations) = words.finish();
        (config["config"].clone(), annotations.into())
    }

    #[test]
    fn the_later_image_wins_but_a_cluster_stays_one() {
        let rootfs = json!({
            "Labels": {"sealos.io.type": "rootfs", "version": "v1.29.0", "a": "1"},
            "Env": ["PATH=/bin", "A=1", "B=1"], "Cmd": ["one"], "Entrypoint": ["init"], "User": "kept",
        });
        let application = json!({
            "Labels": {"sealos.io.type": "application", "a": "2"}, "Env": ["B=2", "C=2", "PATH=/"], "Cmd": ["two"],
        });
        let (config, annotations) = merged(&[(rootfs, json!({})), (application, json!({}))]);
        assert_eq!(config["Labels"]["sealos.io.type"], "rootfs");
        assert_eq!((&config["Labels"]["a"], &config["Labels"]["version"]), (&json!("2"), &json!("v1.29.0")));
        assert_eq!(config["Env"], json!(["A=1", "B=2", "C=2"]));
        assert_eq!((&config["Cmd"], &config["Entrypoint"]), (&json!(["one", "two"]), &json!(["init"])));
        assert_eq!(config["User"], "kept");
        assert_eq!(annotations, json!({}));
    }

    #[test]
    fn sealers_applications_come_one_after_the_other() {
        let extension = |kind: &str, name: &str| {
            let extension = json!({
                "type": kind, "applications": [{"name": name, "type": "helm"}],
                "launch": {"cmds": [], "app_names": [name]},
            });
            json!({"sealer.image.extension": extension.to_string()})
        };
        let images = [
            (json!({}), extension("kube-installer", "cni")),
            (json!({}), extension("app-installer", "db")),
            (json!({}), json!({"io.nydus-cluster.images": "sha256:0"})),
            (json!({}), extension("app-installer", "db")),
        ];
        let (_, annotations) = merged(&images);
        // Nothing was saved for what they are together.
        assert_eq!(annotations.get("io.nydus-cluster.images"), None);
        let merged: Value =
            serde_json::from_str(annotations["sealer.image.extension"].as_str().unwrap()).unwrap();
        assert_eq!(merged["type"], "kube-installer");
        assert_eq!(merged["applications"].as_array().unwrap().len(), 2);
        assert_eq!(merged["launch"]["app_names"], json!(["cni", "db"]));
    }
}
