//! A registry that is not there: for a node that boots, and for a cluster whose images are complete.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cluster_lab::ClusterLab;
use integration::machines::Machine;
use integration::wait;
use serde_json::Value;

use crate::SERVING_DEADLINE;

/// Settings of the nodes' own.
const CONFIG: &str = "/etc/nydus-cluster/config.toml";
/// The pods of the deployment that is made larger here.
const PODS: &str = "get pods --no-headers -l app=nginx";
/// Units that begin again and again do so every second or two.
const RETRY_DEADLINE: Duration = Duration::from_secs(60);
/// Some hundred megabytes on each node.
const COMPLETE_DEADLINE: Duration = Duration::from_secs(600);

/// A program that the first node alone has run, and then all there is.
const READ_CLUSTER_IMAGE: &str =
    "cd /var/lib/nydus-cluster/cluster/tree && bin/helm version && find . -type f -exec cat {} + >/dev/null";

/// The number of what the tree lies on, among what is mounted.
const CLUSTER_IMAGE: &str = "sed -n 's,^overlay /var/lib/nydus-cluster/cluster/tree .*lowerdir=[^ ]*/mounts/\\([0-9]*\\).*,\\1,p' /proc/mounts";
/// What a node keeps of images, by their numbers, to mount them without their registries.
const BOOTSTRAPS: &str = "/var/lib/nydus-cluster/cluster/snapshotter/snapshots";

/// A node that has nothing of the cluster image boots while nobody has it, and comes back with its pods when somebody has.
pub(crate) fn at_a_reboot(lab: &mut ClusterLab) -> Result<()> {
    lab.end_registry()?;
    let worker = &lab.machines().all()[2];
    worker.run(&format!("rm -r {BOOTSTRAPS}/$({CLUSTER_IMAGE})/fs/image"))?;
    // Whoever is asked instead says no at once, where elsewhere a name is looked up.
    worker.run("echo 127.0.0.1 registry.example registry.k8s.io >>/etc/hosts")?;
    worker.reboot()?;
    for unit in ["nydus-cluster-image", "containerd", "kubelet"] {
        let again = format!("test $(systemctl show --property=NRestarts --value {unit}) -gt 0");
        worker.wait_for(&format!("{unit} begins again"), RETRY_DEADLINE, &again)?;
    }
    worker.run("! mountpoint -q /var/lib/nydus-cluster/cluster/tree && ! systemctl is-active kubelet")?;
    lab.begin_registry()?;
    lab.wait_serving(SERVING_DEADLINE)
}

/// Has nodes of the next run fetch images whole right after they are mounted, the cluster image too.
pub(crate) fn complete_soon(lab: &ClusterLab) -> Result<()> {
    complete_after(lab, 1)
}

/// Has nodes of the next run fetch what is read alone, however long the test takes. [`after_completion`] removes the setting.
pub(crate) fn complete_late(lab: &ClusterLab) -> Result<()> {
    complete_after(lab, 3600)
}

fn complete_after(lab: &ClusterLab, seconds: u64) -> Result<()> {
    let setting = format!("[daemon.prefetch]\ncomplete_after_seconds = {seconds}\n");
    lab.machines().all().iter().try_for_each(|machine| machine.write(CONFIG, &setting))
}

/// Once all images in use are on the nodes, pods begin again and new ones begin without the registry.
pub(crate) fn after_completion(lab: &mut ClusterLab) -> Result<()> {
    let deadline = format!("--timeout={}s", SERVING_DEADLINE.as_secs());
    // Pods that were placed before all nodes had joined are on one node; a node has the images of its own pods alone.
    lab.wait_nodes_ready(lab.machines().all().len())?;
    lab.kubectl("scale deployment nginx --replicas=6")?;
    lab.kubectl(&format!("rollout status deployment nginx {deadline}"))?;
    let nodes: BTreeSet<_> = lab
        .kubectl(&format!("{PODS} -o custom-columns=:.spec.nodeName"))?
        .lines()
        .map(str::to_owned)
        .collect();
    ensure!(nodes.len() == lab.machines().all().len(), "{nodes:?}");
    for machine in lab.machines().all() {
        let mut last = Value::Null;
        let complete = wait::until_true("all images in use are complete", COMPLETE_DEADLINE, || {
            last = images(machine).unwrap_or_default();
            let counts = last.as_array().into_iter().flatten().map(|image| &image["chunks"]);
            let mut counts =
                counts.map(|chunks| (chunks["ready"].as_u64(), chunks["all"].as_u64())).peekable();
            // The cluster image is one of them.
            counts.peek().is_some() && counts.all(|(ready, all)| ready.is_some() && ready == all)
        });
        complete.with_context(|| format!("{}: {last:#}", machine.name()))?;
    }
    lab.end_registry()?;
    for machine in lab.machines().all() {
        machine.run(READ_CLUSTER_IMAGE)?;
    }
    boots(lab)?;
    let before = lab.kubectl(&format!("{PODS} -o name"))?;
    lab.kubectl("delete pods -l app=nginx --wait")?;
    lab.kubectl("scale deployment nginx --replicas=9")?;
    lab.kubectl(&format!("rollout status deployment nginx {deadline}"))
        .with_context(|| lab.kubectl("describe pods -l app=nginx").unwrap_or_default())?;
    let after = lab.kubectl(&format!("{PODS} -o name"))?;
    ensure!(after.lines().count() == 9 && !after.lines().any(|pod| before.contains(pod)), "{after}");
    lab.machines()
        .all()
        .iter()
        .try_for_each(|machine| machine.run(&format!("rm -r $(dirname {CONFIG})")).map(drop))
}

/// A node boots without the registry: it has all that it needs, for new pods and for those that were there.
fn boots(lab: &ClusterLab) -> Result<()> {
    let worker = &lab.machines().all()[2];
    worker.reboot()?;
    worker.wait_for("the kubelet runs", SERVING_DEADLINE, "systemctl is-active kubelet")?;
    let image = "jsonpath='{.spec.template.spec.containers[0].image}'";
    let image = lab.kubectl(&format!("get deployment nginx -o {image}"))?;
    // What the API server says of others may be of the time before; of this one it is not.
    lab.run_pod("after-boot", &image, worker, &[])?;
    lab.wait_nodes_ready(lab.machines().all().len())?;
    let of_node = format!("--field-selector=spec.nodeName={}", worker.name());
    let deadline = SERVING_DEADLINE.as_secs();
    lab.kubectl(&format!("wait --for=condition=Ready --timeout={deadline}s pods -A {of_node}"))
        .with_context(|| lab.kubectl(&format!("get pods -A -o wide {of_node}")).unwrap_or_default())?;
    worker.run(READ_CLUSTER_IMAGE)?;
    lab.kubectl("delete pod after-boot --wait").map(drop)
}

/// What a node's daemon says of the images that are mounted.
fn images(machine: &Machine) -> Result<Value> {
    let said = machine.run("/var/lib/nydus-cluster/bin/nydus-cluster node status --json")?.stdout;
    let mut said: Value = serde_json::from_str(&said)?;
    Ok(said["mounts"].take())
}
