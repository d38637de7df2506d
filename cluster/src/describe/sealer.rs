//! sealer's documents: two annotations of the manifest, and the file `Metadata`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{DescribeError, Description, Kind, Words};

/// The annotation that says what the image is and how it is launched.
pub(super) const EXTENSION: &str = "sealer.image.extension";
/// The annotation with its container images.
pub(super) const IMAGES: &str = "sealer.image.container.images";

const KUBE_INSTALLER: &str = "kube-installer";
const APP_INSTALLER: &str = "app-installer";
/// The version of the annotation's form.
const SCHEMA_VERSION: &str = "v1alpha1";

/// An application in an image.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Application {
    /// Its name: that of its folder in `application/apps`.
    pub name: String,
    /// What it is: `helm`, `kube`, `shell`.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The version of this description of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Files in its folder, in the order in which they are applied or run.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// What its commands see.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The words of the command that launches it, in its folder.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub cmds: Vec<String>,
    /// What else is said of it.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// What is run to launch an image.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct SealerLaunch {
    /// Commands.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub cmds: Vec<String>,
    /// Applications.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub app_names: Vec<String>,
}

/// A container image that an image needs.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerImage {
    /// Its name.
    pub image: String,
    /// The application that it belongs to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub app_name: String,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// A platform.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct Platform {
    /// The operating system.
    pub os: String,
    /// The architecture.
    pub architecture: String,
    /// Its variant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// The annotation.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Extension {
    #[serde(skip_serializing_if = "String::is_empty")]
    schema_version: String,
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    kind: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    applications: Vec<Application>,
    launch: SealerLaunch,
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// The file.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(super) struct SealerMetadata {
    version: String,
    arch: String,
    variant: String,
    #[serde(rename = "kubeVersion")]
    kube_versions: String,
    #[serde(rename = "NydusFlag")]
    nydus: bool,
    #[serde(rename = "ClusterRuntime")]
    cluster_runtime: String,
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// Go writes what is empty as `null`.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    input: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

pub(super) fn parse<'a, T: Deserialize<'a>>(place: &'static str, text: &'a str) -> Result<T, DescribeError> {
    serde_json::from_str(text).map_err(|error| DescribeError { place, error })
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

impl Description {
    pub(super) fn read_metadata(&mut self, metadata: SealerMetadata) {
        // Root file systems alone have the file.
        self.kind = Some(Kind::Rootfs);
        self.version = some(&metadata.version);
        self.architecture = some(&metadata.arch).map(|arch| (arch, metadata.variant.clone()));
        self.kube_versions = some(&metadata.kube_versions);
        self.cluster_runtime.name = some(&metadata.cluster_runtime);
        self.nydus = metadata.nydus;
        self.metadata = metadata;
    }

    pub(super) fn read_extension(&mut self, extension: Extension) {
        let kind = match extension.kind.as_str() {
            KUBE_INSTALLER => Some(Kind::Rootfs),
            APP_INSTALLER => Some(Kind::Application),
            _ => None,
        };
        // A patch of sealos is one of sealer's kube installers at most.
        if self.kind != Some(Kind::Patch) {
            self.kind = kind.or(self.kind);
        }
        self.applications = extension.applications.clone();
        self.launch = extension.launch.clone();
        self.extension = extension;
    }

    /// The annotations that say this, which only sealer has.
    pub fn annotations(&self) -> Words {
        let mut extension = self.extension.clone();
        if extension.schema_version.is_empty() {
            SCHEMA_VERSION.clone_into(&mut extension.schema_version);
        }
        if let Some(kind) = self.kind {
            let kind = if kind == Kind::Application { APP_INSTALLER } else { KUBE_INSTALLER };
            kind.clone_into(&mut extension.kind);
        }
        extension.applications = self.applications.clone();
        extension.launch = self.launch.clone();
        // Strings, lists and maps with strings for keys: that cannot fail.
        let text = |value: serde_json::Result<String>| value.unwrap_or_default();
        Words::from([
            (EXTENSION.to_owned(), text(serde_json::to_string(&extension))),
            (IMAGES.to_owned(), text(serde_json::to_string(&self.images))),
        ])
    }

    /// The file `Metadata` that says this.
    pub fn metadata(&self) -> String {
        let (arch, variant) = self.architecture.clone().unwrap_or_default();
        let metadata = SealerMetadata {
            version: self.version.clone().unwrap_or_default(),
            arch,
            variant,
            kube_versions: self.kube_versions.clone().unwrap_or_default(),
            nydus: self.nydus,
            cluster_runtime: self.cluster_runtime.name.clone().unwrap_or_default(),
            other: self.metadata.other.clone(),
        };
        serde_json::to_string_pretty(&metadata).unwrap_or_default() + "\n"
    }
}
