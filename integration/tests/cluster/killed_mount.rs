//! The process that mounts the cluster image on a node is killed: pods go on, and the node's programs come back.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::cluster_lab::ClusterLab;

use crate::SERVING_DEADLINE;

/// The unit begins again within seconds, and what needs it after it.
const BACK_DEADLINE: Duration = Duration::from_secs(60);
const PROCESS: &str = "systemctl show --property=MainPID --value nydus-cluster-image";

pub(crate) fn comes_back(lab: &ClusterLab) -> Result<()> {
    let worker = &lab.machines().all()[2];
    let of_node = format!("get pods -A --field-selector=spec.nodeName={}", worker.name());
    let containers = || {
        let ids = "jsonpath='{range .items[*].status.containerStatuses[*]}{.containerID}{\"\\n\"}{end}'";
        lab.kubectl(&format!("{of_node} -o {ids} | sort"))
    };
    let before = containers()?;
    ensure!(before.contains("containerd://"), "{before}");
    let killed = worker.run(PROCESS)?.stdout;
    worker.run(&format!("kill -9 {}", killed.trim()))?;
    let other =
        format!("[ $({PROCESS}) -gt 0 ] && [ $({PROCESS}) != {} ] && kubelet --version", killed.trim());
    worker.wait_for("the cluster image is mounted again", BACK_DEADLINE, &other)?;
    worker.wait_for("the kubelet runs", BACK_DEADLINE, "systemctl is-active kubelet containerd")?;

    lab.wait_nodes_ready(lab.machines().all().len())?;
    lab.run_pod("after-kill", "registry.k8s.io/pause:3.10.2", worker, &[])?;
    lab.kubectl("delete pod after-kill --now")?;
    lab.wait_serving(SERVING_DEADLINE)?;
    let after = containers()?;
    ensure!(after == before, "containers did not go on:\n{before}\n{after}");
    Ok(())
}
