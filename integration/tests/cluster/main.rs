//! A real Kubernetes, launched on booted machines from a cluster image.
//!
//! Where something is missing, tests say `skipped: needs …`; with `CI=true` they fail instead.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cluster_image::{ClusterImage, Services};
use integration::cluster_lab::ClusterLab;
use integration::machines::Machines;
use integration::peers::Peers;
use integration::suite::trial;
use libtest_mimic::Arguments;

/// How long pods may take until they serve, images and all, on a loaded host.
const SERVING_DEADLINE: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let peers = Peers::of_user();
    let missing = match &peers {
        Ok(peers) => {
            let lacks = Machines::require(peers).and_then(|()| ClusterImage::require(peers)).err();
            lacks.map(|error| format!("{error:#}"))
        }
        Err(error) => Some(format!("{error:#}")),
    };
    let test = trial("three_bare_nodes_become_a_cluster_that_serves", missing.as_deref(), move || {
        becomes_a_cluster(&peers.context("no peers")?)
    });
    libtest_mimic::run(&arguments, vec![test]).exit_code()
}

/// Everything on one set of machines, since booting and launching is what takes long.
fn becomes_a_cluster(peers: &Peers) -> Result<()> {
    let services = Services::Two;
    let image = ClusterImage::make(peers, services)?;
    let dir = tempfile::Builder::new().prefix("cluster-").tempdir_in(peers.cache())?;
    let lab = ClusterLab::start(peers, &image, services, dir.path())?;
    // A run that is killed while kubeadm is at work, and one that goes on.
    lab.killed_run("[WARNING SystemVerification]")?;
    let first_run = lab.cluster_run()?;
    ensure!(first_run.stderr.contains("an earlier run did not come to its end"), "{}", first_run.stderr);
    ensure!(first_run.stdout.trim().ends_with("kubeconfig"), "{}", first_run.stdout);
    lab.wait_nodes_ready(3)?;
    lab.wait_serving(SERVING_DEADLINE)?;

    // A second run finds nothing to do.
    let before = lab.state_of_nodes()?;
    lab.cluster_run()?;
    let after = lab.state_of_nodes()?;
    for (before, after) in before.iter().zip(&after) {
        ensure!(after == before, "the second run changed something:\n{before}\n{after}");
    }
    let shown = lab.cluster(&["ps"])?.stdout;
    ensure!(shown.matches("kubelet.service active").count() == 3, "{shown}");
    ensure!(lab.cluster(&["logs"])?.stdout.contains("bringing the image"));

    // A node comes back with its pods.
    let worker = &lab.machines().all()[2];
    worker.reboot()?;
    lab.wait_serving(SERVING_DEADLINE)?;

    // Its images are kept for the next run, which finds nothing else of the cluster.
    lab.cluster(&["rm", "--keep-images"])?;
    for machine in lab.machines().all() {
        machine.run("test ! -e /etc/kubernetes && ! pgrep 'kube|etcd'")?;
        machine.run("ctr --namespace k8s.io images ls -q | grep -q registry.example/network")?;
    }
    lab.cluster_run()?;
    lab.wait_serving(SERVING_DEADLINE)?;

    lab.cluster(&["rm"])?;
    for machine in lab.machines().all() {
        machine.run("test ! -e /var/lib/nydus-cluster/cluster && test ! -e /usr/bin/kubelet")?;
        machine
            .run("test ! -e /etc/kubernetes && test ! -e /etc/containerd && test ! -e /sys/class/net/cni0")?;
        machine
            .run("! pgrep 'kube|etcd|containerd|nydus' && systemctl --failed --quiet | wc -l | grep -qx 0")?;
        let mounts = machine.run("awk '$2 ~ /nydus|kubelet|containerd/' /proc/mounts")?.stdout;
        ensure!(mounts.is_empty(), "{} has mounts:\n{mounts}", machine.name());
    }
    ensure!(lab.cluster(&["ps"])?.stdout.lines().count() == 1);
    Ok(())
}
