//! Objects that describe pods.

use super::{Reader, Role};
use yaml::Value;

/// Where a pod's description is in an object of `kind`; `None`: such objects describe none.
fn pod_path(kind: &str) -> Option<&'static [&'static str]> {
    Some(match kind {
        "Pod" => &["spec"],
        "PodTemplate" => &["template", "spec"],
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            &["spec", "template", "spec"]
        }
        "CronJob" => &["spec", "jobTemplate", "spec", "template", "spec"],
        _ => return None,
    })
}

impl Reader<'_> {
    /// Reads an object of Kubernetes' own.
    pub(super) fn workload(&mut self, kind: &str, object: Value<'_>) {
        if let Some(pod) = pod_path(kind).and_then(|path| object.at_path(path)) {
            self.pod(pod);
        }
    }

    /// Reads a pod's `spec`.
    fn pod(&mut self, pod: Value<'_>) {
        if !self.first(Role::Pod, pod) {
            return;
        }
        // Sidecars are init containers that are restarted.
        for containers in ["initContainers", "containers", "ephemeralContainers"] {
            let Some(containers) = pod.get(containers) else { continue };
            if !self.first(Role::Containers, containers) {
                continue;
            }
            for container in containers.items() {
                if self.first(Role::Container, container)
                    && let Some(image) = container.get("image")
                {
                    // Some objects have it filled in when they are admitted.
                    if image.string() != Some("") {
                        self.ask(image);
                    }
                }
            }
        }
        let Some(volumes) = pod.get("volumes") else { return };
        if !self.first(Role::Volumes, volumes) {
            return;
        }
        for volume in volumes.items() {
            if self.first(Role::Volume, volume)
                && let Some(reference) = volume.at_path(&["image", "reference"])
            {
                self.ask(reference);
            }
        }
    }
}
