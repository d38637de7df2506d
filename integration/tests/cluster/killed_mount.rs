//! The processes that serve the cluster image on a node are killed: pods and the node's programs go on. Where its mount is lost for all that,
//! the programs come back, and pods go on.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::cluster_lab::ClusterLab;
use integration::machines::Machine;

use crate::SERVING_DEADLINE;

/// The units begin again within seconds.
const BACK_DEADLINE: Duration = Duration::from_secs(60);
/// The place of the cluster image's mount: what the tree lies on.
const PLACE: &str =
    "sed -n 's,^overlay /var/lib/nydus-cluster/cluster/tree .*lowerdir=\\([^,]*\\).*,\\1,p' /proc/mounts";
/// What runs from the image, and what lays its tree.
const PROGRAMS: &str = "systemctl show --property=MainPID --value nydus-cluster-image containerd kubelet";

pub(crate) fn comes_back(lab: &ClusterLab) -> Result<()> {
    let worker = &lab.machines().all()[2];
    let of_node = format!("get pods -A --field-selector=spec.nodeName={}", worker.name());
    let containers = || {
        let ids = "jsonpath='{range .items[*].status.containerStatuses[*]}{.containerID}{\"\\n\"}{end}'";
        lab.kubectl(&format!("{of_node} -o {ids} | sort"))
    };
    let before = containers()?;
    ensure!(before.contains("containerd://"), "{before}");
    goes_on(worker)?;
    is_lost(worker)?;

    lab.wait_nodes_ready(lab.machines().all().len())?;
    lab.run_pod("after-kill", "registry.k8s.io/pause:3.10.2", worker, &[])?;
    lab.kubectl("delete pod after-kill --now")?;
    lab.wait_serving(SERVING_DEADLINE)?;
    let after = containers()?;
    ensure!(after == before, "containers did not go on:\n{before}\n{after}");
    Ok(())
}

/// Nothing that runs from the image ends with the daemon, nor with the snapshotter, nor with both at once.
fn goes_on(worker: &Machine) -> Result<()> {
    let before = worker.run(PROGRAMS)?.stdout;
    for units in [
        "nydus-cluster-daemon",
        "nydus-cluster-snapshotter",
        "nydus-cluster-daemon nydus-cluster-snapshotter",
    ] {
        let processes = format!("systemctl show --property=MainPID --value {units} | grep .");
        let killed = worker.run(&processes)?.stdout;
        worker.run(&format!("kill -9 {}", killed.split_whitespace().collect::<Vec<_>>().join(" ")))?;
        for id in killed.split_whitespace() {
            let others = format!("! {processes} | grep -x -e 0 -e {id} && kubelet --version");
            worker.wait_for(&format!("{units} are there again"), BACK_DEADLINE, &others)?;
        }
        let after = worker.run(PROGRAMS)?.stdout;
        ensure!(after == before, "programs ended with {units}:\n{before}\n{after}");
    }
    Ok(())
}

/// Somebody unmounts the image.
fn is_lost(worker: &Machine) -> Result<()> {
    let image = "systemctl show --property=MainPID --value nydus-cluster-image";
    let place = worker.run(PLACE)?.stdout;
    ensure!(place.contains("/snapshotter/mounts/"), "the daemon has not mounted the cluster image: {place}");
    let before = worker.run(image)?.stdout;
    worker.run(&format!("umount --lazy {}", place.trim()))?;
    let other = format!("[ $({image}) -gt 0 ] && [ $({image}) != {} ] && kubelet --version", before.trim());
    worker.wait_for("the cluster image is mounted again", BACK_DEADLINE, &other)?;
    worker.wait_for("the kubelet runs", BACK_DEADLINE, "systemctl is-active kubelet containerd")
}
