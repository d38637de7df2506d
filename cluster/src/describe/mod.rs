//! What a cluster image says of itself, in the words of sealer and of sealos.
//!
//! | said | sealer | sealos |
//! |---|---|---|
//! | what it is | `type` in the annotation `sealer.image.extension`; a root file system has `Metadata` | label `sealos.io.type` |
//! | its version | `version` in the file `Metadata` | label `version` |
//! | the versions of Kubernetes that it is for | label `app.alpha.sealer.io/supported-kube-version`, `kubeVersion` in `Metadata` | |
//! | the kind of cluster | label `cluster.alpha.sealer.io/cluster-runtime-type`, `ClusterRuntime` in `Metadata` | label `sealos.io.distribution` |
//! | runtimes | labels `cluster.alpha.sealer.io/{container,cluster}-runtime-{type,version}` | |
//! | network and storage | labels `cluster.alpha.sealer.io/kube-{cni,csi}-NAME` | |
//! | hooks | | labels `init`, `clean`, `check`, … |
//! | what is launched | `applications`, `launch` in the annotation | the image's command |
//! | its container images | annotation `sealer.image.container.images` | |
//!
//! Both are read, and both are written. Where they say different things, sealer's annotation comes before labels, and these before
//! the file, which is older. Members of sealer's documents that are not known here are kept.

mod labels;
mod sealer;

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

pub use sealer::{Application, ContainerImage, Platform, SealerLaunch};

/// A document that is none.
#[derive(Debug, Error)]
#[error("{place}: {error}")]
pub struct DescribeError {
    /// Which one: an annotation, or a file.
    pub place: &'static str,
    /// What is wrong with it.
    pub error: serde_json::Error,
}

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A cluster: it goes to all nodes.
    Rootfs,
    /// Something that runs in a cluster.
    Application,
    /// A part of a cluster, to be put over another one.
    Patch,
}

/// A program and its version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// Which one: `containerd`, `docker`; `kubernetes`, `k3s`, `k0s`.
    pub name: Option<String>,
    /// Its version.
    pub version: Option<String>,
}

/// What a cluster image says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Description {
    /// What it is.
    pub kind: Option<Kind>,
    /// The version of what it brings: of Kubernetes, or of the application.
    pub version: Option<String>,
    /// The processor's architecture and variant.
    pub architecture: Option<(String, String)>,
    /// The versions of Kubernetes that it is for, as a range.
    pub kube_versions: Option<String>,
    /// What runs the containers.
    pub container_runtime: Runtime,
    /// What makes the cluster.
    pub cluster_runtime: Runtime,
    /// Network plugins that it brings.
    pub cni: BTreeSet<String>,
    /// Storage plugins that it brings.
    pub csi: BTreeSet<String>,
    /// Commands by what they are run for: `init`, `clean`, `check`, `init-registry`, …
    pub hooks: BTreeMap<String, String>,
    /// The applications in it.
    pub applications: Vec<Application>,
    /// What is run to launch it.
    pub launch: SealerLaunch,
    /// The container images that it needs.
    pub images: Vec<ContainerImage>,
    /// Whether sealer's old nydus support was to be used.
    pub nydus: bool,
    extension: sealer::Extension,
    metadata: sealer::SealerMetadata,
}

/// A string map, as configs and manifests have them.
pub type Words = BTreeMap<String, String>;

impl Description {
    /// Reads the labels of an image's config, the annotations of its manifest, and its file `Metadata`.
    ///
    /// # Errors
    ///
    /// When one of sealer's documents is none.
    pub fn read(labels: &Words, annotations: &Words, metadata: Option<&str>) -> Result<Self, DescribeError> {
        let mut description = Self::default();
        if let Some(text) = metadata {
            description.read_metadata(sealer::parse("Metadata", text)?);
        }
        description.read_labels(labels);
        if let Some(text) = annotations.get(sealer::EXTENSION) {
            description.read_extension(sealer::parse(sealer::EXTENSION, text)?);
        }
        if let Some(text) = annotations.get(sealer::IMAGES) {
            let images: Option<Vec<ContainerImage>> = sealer::parse(sealer::IMAGES, text)?;
            description.images = images.unwrap_or_default();
        }
        Ok(description)
    }
}

#[cfg(test)]
mod tests;
