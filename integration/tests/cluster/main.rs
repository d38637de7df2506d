//! A real Kubernetes, launched on booted machines from a cluster image.
//!
//! Where something is missing, tests say `skipped: needs …`; with `CI=true` they fail instead.

mod directory;
mod killed_mount;
mod own_containerd;
mod own_runtime;
mod package;
mod private;
mod registry_away;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::access_log::Request;
use integration::cluster_image::{ClusterImage, Pull, Services};
use integration::cluster_lab::ClusterLab;
use integration::launches::{Stored, measure};
use integration::machines::Machines;
use integration::peers::Peers;
use integration::suite::{TestOnPeers, trials_on_peers};
use libtest_mimic::Arguments;
use own_containerd::OwnContainerd;

/// How long pods may take until they serve, images and all, on a loaded host.
const SERVING_DEADLINE: Duration = Duration::from_secs(240);

const TESTS: &[(&str, TestOnPeers)] = &[
    ("three_bare_nodes_become_a_cluster_that_serves", becomes_a_cluster),
    ("a_package_becomes_a_cluster_with_two_masters_and_no_registry", package::becomes_a_cluster),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each boots three machines: one set after the other is what a host carries.
    arguments.test_threads = Some(1);
    let trials = trials_on_peers(TESTS, |peers| {
        Machines::require(peers)?;
        ClusterImage::require(peers)
    });
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Bytes that were read of what container images were saved as, and of the images as they are.
fn read_of_images(requests: &[Request], saved: &BTreeSet<String>) -> (u64, u64) {
    let of_blob = |request: &&Request| request.blob().is_some();
    let is_own = |request: &&Request| {
        ["/services/", "/network/", "/registry.k8s.io/"].iter().any(|part| request.path.contains(part))
    };
    let lazily = requests.iter().filter(|request| request.blob().is_some_and(|blob| saved.contains(blob)));
    let as_they_were = requests.iter().filter(of_blob).filter(is_own);
    (lazily.map(|request| request.bytes_sent).sum(), as_they_were.map(|request| request.bytes_sent).sum())
}

/// Everything on one set of machines, since booting and launching is what takes long.
fn becomes_a_cluster(peers: &Peers) -> Result<()> {
    let services = Services::Two;
    let image = ClusterImage::make(peers, services)?;
    let dir = tempfile::Builder::new().prefix("cluster-").tempdir_in(peers.cache())?;
    let mut lab = ClusterLab::start(peers, &image, services, dir.path())?;
    let outside = image.push_outside(lab.registry())?;
    let own_containerd = OwnContainerd::begin(&lab, peers, own_containerd::SERIES_2, &outside)?;
    begins(&lab, &image, services, dir.path())?;

    // A second run finds nothing to do.
    let tokens = || {
        let of_kind = "--field-selector type=bootstrap.kubernetes.io/token -o name";
        lab.machines().all()[0].run(&format!(
            "kubectl --kubeconfig /etc/kubernetes/admin.conf --namespace kube-system get secrets {of_kind}"
        ))
    };
    let (before, tokens_before) = (lab.state_of_nodes()?, tokens()?.stdout);
    lab.cluster_run()?;
    let (after, tokens_after) = (lab.state_of_nodes()?, tokens()?.stdout);
    ensure!(tokens_after == tokens_before, "there are other tokens:\n{tokens_before}\n{tokens_after}");
    for (before, after) in before.iter().zip(&after) {
        ensure!(after == before, "the second run changed something:\n{before}\n{after}");
    }
    let shown = lab.cluster(&["ps"])?.stdout;
    for service in ["kubelet", "nydus-cluster-serve", "nydus-cluster-snapshotter", "nydus-cluster-daemon"] {
        ensure!(shown.matches(&format!("{service}.service active")).count() == 3, "{shown}");
    }
    ensure!(lab.cluster(&["logs"])?.stdout.contains("bringing the image"));

    pulls(&lab, &image, services, &outside, &own_containerd)?;
    own_containerd.goes_on(&lab)?;
    private::is_read_by_a_pull_secret(&lab)?;
    killed_mount::comes_back(&lab)?;
    registry_away::at_a_reboot(&mut lab)?;

    // Its images are kept for the next run, which finds nothing else of the cluster.
    lab.cluster(&["rm", "--keep-images"])?;
    for machine in lab.machines().all() {
        machine.run("test ! -e /etc/kubernetes && ! pgrep 'kube|etcd'")?;
        // The next cluster may give it other addresses for its pods.
        machine.run("test -z \"$(ls -A /etc/cni/net.d)\"")?;
        machine.run("ctr --namespace k8s.io images ls -q | grep -q registry.example/network")?;
    }
    registry_away::complete_soon(&lab)?;
    lab.cluster_run()?;
    lab.wait_serving(SERVING_DEADLINE)?;
    registry_away::after_completion(&mut lab)?;

    lab.cluster(&["rm"])?;
    own_containerd.is_as_before(&lab)?;
    is_gone(&lab, &own_containerd)?;

    // An image of another kind finds bare nodes again.
    lab.begin_registry()?;
    own_runtime::becomes_a_cluster(&lab)?;
    own_containerd.is_as_before(&lab)?;
    directory::becomes_a_cluster(&lab, services)
}

/// The cluster comes up, as the demonstration has it, and container images are read as they were saved.
fn begins(lab: &ClusterLab, image: &ClusterImage, services: Services, dir: &Path) -> Result<()> {
    // On a slow host a launch may take longer than nodes wait before they fetch images whole.
    registry_away::complete_late(lab)?;
    let (log, start) = (lab.registry().access_log(), lab.registry().access_log().mark()?);
    // A run that is killed while kubeadm is at work, and one that goes on.
    lab.killed_run("[WARNING SystemVerification]")?;
    let stored = Stored::of(image, services, Pull::Lazy)?;
    let figures = measure(lab, dir, lab.run_command(Pull::Lazy)?, &stored)?;
    let said = fs::read_to_string(dir.join("cluster-run.log"))?;
    ensure!(said.contains("an earlier run did not come to its end"), "{said}");
    ensure!(said.trim().ends_with("kubeconfig"), "{said}");
    ensure!(figures.registry_bytes > 0 && figures.ready_s <= figures.serving_s, "{figures:?}");
    let on_nodes = lab.images_on_nodes()?;
    let whole: u64 = on_nodes.iter().map(|images| image.images_bytes(images)).sum::<Result<_>>()?;
    let (lazily, as_they_were) = read_of_images(&log.since(start)?, &image.saved_blobs(services)?);
    eprintln!("{lazily} bytes of {whole} were read of container images");
    ensure!(as_they_were == 0, "{as_they_were} bytes of container images came as they were");
    ensure!(
        lazily > 0 && lazily * 10 < whole * 7,
        "{lazily} bytes of container images came: {whole} are all of them"
    );
    Ok(())
}

/// Images that nobody has on a node yet.
fn pulls(
    lab: &ClusterLab,
    image: &ClusterImage,
    services: Services,
    outside: &str,
    own_containerd: &OwnContainerd,
) -> Result<()> {
    let worker = &lab.machines().all()[2];
    let (log, start) = (lab.registry().access_log(), lab.registry().access_log().mark()?);
    // A pod names an image by its digest alone. etcd runs on the first node only.
    let etcd = image.digest("registry.k8s.io/etcd:3.7.0-0")?;
    for machine in [worker, own_containerd.machine(lab)] {
        let name = format!("pinned-{}", machine.name());
        lab.run_pod(&name, &format!("registry.k8s.io/etcd@{etcd}"), machine, &["etcd"])?;
    }
    let (lazily, as_they_were) = read_of_images(&log.since(start)?, &image.saved_blobs(services)?);
    ensure!(lazily > 0 && as_they_were == 0, "{lazily}, {as_they_were}");
    // One that was not saved comes as it is, on the layers of one that was.
    lab.run_pod("outside", outside, worker, &[])?;
    ensure!(lab.kubectl("exec outside -- cat /outside")?.trim() == "outside");
    // What is not there as it was cannot be taken from here.
    worker.run("! ctr --namespace k8s.io images export /tmp/pause.tar registry.k8s.io/pause:3.10.2").map(drop)
}

/// Nothing of the cluster is left on the nodes.
fn is_gone(lab: &ClusterLab, own_containerd: &OwnContainerd) -> Result<()> {
    for machine in lab.machines().all() {
        machine.run("test ! -e /var/lib/nydus-cluster/cluster && test ! -e /usr/bin/kubelet")?;
        machine.run("! find /etc /run -xdev -name '*nydus*' -not -path /run/nydus-cluster | grep .")?;
        machine.run("test ! -e /etc/kubernetes && test ! -e /sys/class/net/cni0")?;
        let (mut programs, mut places) = ("kube|etcd|nydus".to_owned(), "nydus|kubelet".to_owned());
        if machine.name() != own_containerd.machine(lab).name() {
            machine.run("test ! -e /etc/containerd")?;
            programs += "|containerd";
            places += "|containerd";
        }
        let left = machine
            .run(&format!("pgrep -l '{programs}' || true; systemctl --failed --no-legend --plain"))?
            .stdout;
        ensure!(left.is_empty(), "on {} are:\n{left}", machine.name());
        let mounts = machine.run(&format!("awk '$2 ~ /{places}/' /proc/mounts"))?.stdout;
        ensure!(mounts.is_empty(), "{} has mounts:\n{mounts}", machine.name());
    }
    ensure!(lab.cluster(&["ps"])?.stdout.lines().count() == 1);
    Ok(())
}
