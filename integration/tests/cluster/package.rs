//! A cluster of a package: no registry is there, two nodes have the control plane and serve it, and images are read lazily. The package is a
//! directory, and the cluster image in it a plain one, which nodes make a nydus image of. One node is bare; the second master has a containerd
//! of its own without a configuration, and the third node an old one.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;

use anyhow::{Context, Result, ensure};
use integration::cluster_image::{ClusterImage, Services};
use integration::cluster_lab::ClusterLab;
use integration::peers::Peers;

use crate::SERVING_DEADLINE;
use crate::own_containerd::{self, OwnContainerd};

/// An image that no worker has.
const OF_MASTERS: &str = "registry.k8s.io/etcd:3.7.0-0";

pub(crate) fn becomes_a_cluster(peers: &Peers) -> Result<()> {
    let services = Services::Two;
    let image = ClusterImage::make_with_plain(peers, services)?;
    let dir = tempfile::Builder::new().prefix("cluster-").tempdir_in(peers.cache())?;
    let package = dir.path().join("package");
    fs::create_dir(&package)?;
    image.package(services, &services.plain(), &package)?;
    let mut lab = ClusterLab::start(peers, &image, services, dir.path())?;
    let outside = image.push_outside(lab.registry())?;
    let own_containerds = [own_containerd::WITHOUT_FILE, own_containerd::SERIES_1]
        .map(|kind| OwnContainerd::begin(&lab, peers, kind, &outside));
    let [of_master, of_worker] = own_containerds;
    let own_containerds = [of_master?, of_worker?];
    lab.end_registry()?;
    lab.run_package(&package, 2)?;
    let [first, ..] = lab.machines().all() else { anyhow::bail!("no machines") };
    first.run("test -n \"$(ls -A /var/lib/nydus-cluster/cluster/converted)\"")?;
    lab.wait_nodes_ready(3)?;
    lab.wait_serving(SERVING_DEADLINE)?;

    let [first, second, worker] = lab.machines().all() else { anyhow::bail!("not three machines") };
    let masters = lab.kubectl("get nodes -l node-role.kubernetes.io/control-plane -o name")?;
    ensure!(masters.lines().count() == 2, "{masters}");
    let etcds = lab.kubectl("-n kube-system get pods -l component=etcd -o name")?;
    ensure!(etcds.lines().count() == 2, "{etcds}");
    // The second one answers by itself.
    let server = format!("https://{}:6443", second.address());
    second.run(&format!(
        "kubectl --kubeconfig /etc/kubernetes/admin.conf --server {server} get --raw /readyz"
    ))?;
    // Every node names both for every host, a master itself first.
    for (machine, expected) in [(first, first), (second, second), (worker, first)] {
        for host in ["registry.k8s.io", "registry.example"] {
            let text = machine.run(&format!("cat /etc/containerd/certs.d/{host}/hosts.toml"))?.stdout;
            let at = |address: &str| text.find(&format!("http://{address}:")).with_context(|| text.clone());
            let own = at(&expected.address().to_string())?;
            for other in [first, second] {
                ensure!(own <= at(&other.address().to_string())?, "{} asks:\n{text}", machine.name());
            }
        }
    }

    // No image came as it was: nobody has its layers. Its chunks came from the package.
    let layers = image.layers(services)?;
    let layers: BTreeSet<_> = layers.iter().filter_map(|file| file.parent()?.file_name()).collect();
    for machine in [first, second, worker] {
        let mut contents = own_containerd::contents(machine)?;
        if let Some(own) = own_containerds.iter().find(|own| own.machine(&lab).name() == machine.name()) {
            contents.retain(|digest| !own.had(digest));
        }
        let whole =
            contents.iter().find(|digest| layers.contains(OsStr::new(digest.trim_start_matches("sha256:"))));
        ensure!(whole.is_none(), "{} has the layer {whole:?}", machine.name());
        let images = machine.run("ctr --namespace k8s.io images ls -q")?.stdout;
        ensure!(images.contains("registry.k8s.io/kube-proxy"), "{} has:\n{images}", machine.name());
        let sets = machine.run("/var/lib/nydus-cluster/bin/nydus-cluster node status --json")?.stdout;
        ensure!(sets.contains("registry.example/nydus-cluster/images@sha256:"), "{}: {sets}", machine.name());
    }

    // Where one master does not serve the package any more, the other does: names, bootstraps and chunks.
    first.run("systemctl stop nydus-cluster-package")?;
    worker.run(&format!("! ctr --namespace k8s.io images ls -q | grep -x {OF_MASTERS}"))?;
    lab.run_pod("of-masters", OF_MASTERS, worker, &["etcd"])?;
    first.run("systemctl start nydus-cluster-package")?;

    own_containerds.iter().try_for_each(|own| own.goes_on(&lab))?;

    // A second run finds nothing to do, and does not bring the package again.
    let before = lab.state_of_nodes()?;
    let said = lab.run_package(&package, 2)?.stderr;
    ensure!(!said.contains("bringing the package"), "{said}");
    let after = lab.state_of_nodes()?;
    for (before, after) in before.iter().zip(&after) {
        ensure!(after == before, "the second run changed something:\n{before}\n{after}");
    }

    lab.cluster(&["rm"])?;
    for machine in lab.machines().all() {
        machine
            .run("cd /var/lib/nydus-cluster && test ! -e cluster && test ! -e packages && test ! -e bin")?;
        machine.run("test ! -e /etc/kubernetes")?;
        let mut programs = "kube|etcd|nydus".to_owned();
        if !own_containerds.iter().any(|own| own.machine(&lab).name() == machine.name()) {
            machine.run("test ! -e /etc/containerd")?;
            programs += "|containerd";
        }
        let left = machine
            .run(&format!("pgrep -l '{programs}' || true; systemctl --failed --no-legend --plain"))?
            .stdout;
        ensure!(left.is_empty(), "on {} are:\n{left}", machine.name());
    }
    own_containerds.iter().try_for_each(|own| own.is_as_before(&lab))
}
