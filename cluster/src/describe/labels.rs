//! Labels: sealos' all, and some of sealer's.

use super::{Description, Kind, Words};

const TYPE: &str = "sealos.io.type";
/// The version of what these labels mean, which sealos asks for.
const LABELS_VERSION: &str = "sealos.io.version";
const LABELS_VERSION_VALUE: &str = "v1beta1";
const DISTRIBUTION: &str = "sealos.io.distribution";
const VERSION: &str = "version";
const KUBE_VERSIONS: &str = "app.alpha.sealer.io/supported-kube-version";
const CONTAINER_RUNTIME: &str = "cluster.alpha.sealer.io/container-runtime";
const CLUSTER_RUNTIME: &str = "cluster.alpha.sealer.io/cluster-runtime";
const CNI: &str = "cluster.alpha.sealer.io/kube-cni-";
const CSI: &str = "cluster.alpha.sealer.io/kube-csi-";

/// Labels that are commands: those of sealos, and the three by which an image makes a cluster of its own kind.
const HOOKS: &[&str] = &[
    "init",
    "clean",
    "check",
    "init-registry",
    "clean-registry",
    "init-cri",
    "clean-cri",
    "auth",
    "image",
    "init-cluster",
    "join-cluster",
    "leave-cluster",
];

impl Description {
    pub(super) fn read_labels(&mut self, labels: &Words) {
        let get = |name: &str| labels.get(name).filter(|value| !value.is_empty()).cloned();
        let kind = get(TYPE).and_then(|kind| match kind.as_str() {
            "rootfs" => Some(Kind::Rootfs),
            "application" => Some(Kind::Application),
            "patch" => Some(Kind::Patch),
            _ => None,
        });
        self.kind = kind.or(self.kind);
        self.version = get(VERSION).or(self.version.take());
        self.kube_versions = get(KUBE_VERSIONS).or(self.kube_versions.take());
        for (runtime, prefix) in
            [(&mut self.container_runtime, CONTAINER_RUNTIME), (&mut self.cluster_runtime, CLUSTER_RUNTIME)]
        {
            runtime.name = get(&format!("{prefix}-type")).or(runtime.name.take());
            runtime.version = get(&format!("{prefix}-version")).or(runtime.version.take());
        }
        // sealer's word for it, if there are two.
        if !labels.contains_key(&format!("{CLUSTER_RUNTIME}-type")) {
            self.cluster_runtime.name = get(DISTRIBUTION).or(self.cluster_runtime.name.take());
        }
        for (label, _) in labels.iter().filter(|(_, value)| *value == "true") {
            for (names, prefix) in [(&mut self.cni, CNI), (&mut self.csi, CSI)] {
                names.extend(label.strip_prefix(prefix).map(str::to_owned));
            }
        }
        for hook in HOOKS {
            if let Some(command) = get(hook) {
                self.hooks.insert((*hook).to_owned(), command);
            }
        }
    }

    /// The labels that say this, of both systems.
    pub fn labels(&self) -> Words {
        let mut labels: Words = self.hooks.clone();
        let mut put = |name: String, value: Option<&str>| {
            if let Some(value) = value {
                labels.insert(name, value.to_owned());
            }
        };
        if let Some(kind) = self.kind {
            let kind = match kind {
                Kind::Rootfs => "rootfs",
                Kind::Application => "application",
                Kind::Patch => "patch",
            };
            put(TYPE.to_owned(), Some(kind));
            put(LABELS_VERSION.to_owned(), Some(LABELS_VERSION_VALUE));
        }
        put(VERSION.to_owned(), self.version.as_deref());
        put(DISTRIBUTION.to_owned(), self.cluster_runtime.name.as_deref());
        put(KUBE_VERSIONS.to_owned(), self.kube_versions.as_deref());
        for (runtime, prefix) in
            [(&self.container_runtime, CONTAINER_RUNTIME), (&self.cluster_runtime, CLUSTER_RUNTIME)]
        {
            put(format!("{prefix}-type"), runtime.name.as_deref());
            put(format!("{prefix}-version"), runtime.version.as_deref());
        }
        for (names, prefix) in [(&self.cni, CNI), (&self.csi, CSI)] {
            names.iter().for_each(|name| put(format!("{prefix}{name}"), Some("true")));
        }
        labels
    }
}
