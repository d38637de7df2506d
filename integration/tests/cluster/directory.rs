//! The root file system of a cluster image in a directory of a bare node, which is run there. It has a registry of its own with some of its
//! container images, saved to the directory as for a later `COPY registry`.

use std::fs;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use integration::cluster_image::Services;
use integration::cluster_lab::ClusterLab;
use integration::machines::Machine;
use integration::{peers, process};

const PROGRAM: &str = "/root/nydus-cluster";
const CONFIG: &str = "/root/config.toml";
const TREE: &str = "/root/rootfs";
/// How images of one host are found for being saved.
const SAVE_CONFIG: &str = "/root/save.toml";
const SAVED_HOST: &str = "registry.k8s.io";
/// Those that are in the directory.
const SAVED: [&str; 2] = ["registry.k8s.io/pause:3.10.2", "registry.k8s.io/coredns/coredns:v1.14.6"];
/// kubeadm with all that it pulls, on a loaded host.
const RUN_DEADLINE: Duration = Duration::from_secs(600);

pub(crate) fn becomes_a_cluster(lab: &ClusterLab, services: Services) -> Result<()> {
    let [first, ..] = lab.machines().all() else { bail!("no machines") };
    let registry = lab.registry().address();
    first.write(PROGRAM, fs::read(peers::nydus_cluster()?)?)?;
    first.write(CONFIG, format!("[registry.hosts.\"{registry}\"]\nplain_http = true\n"))?;
    let image = format!("{registry}/{}", services.image());
    first.run(&format!(
        "chmod +x {PROGRAM}; {PROGRAM} --config {CONFIG} image unpack {image} {TREE} --directory"
    ))?;
    save(lab, first)?;
    let run = || {
        let mut run = first.command(PROGRAM)?;
        run.args([
            "--config",
            CONFIG,
            "cluster",
            "run",
            TREE,
            "--registry",
            &format!("http://{registry}/v2"),
        ]);
        process::run_within(&mut run, RUN_DEADLINE)
    };
    let said = run()?.stdout;
    ensure!(said.trim().ends_with("kubeconfig"), "{said}");
    let nodes = lab.kubectl("get nodes -o name")?;
    ensure!(nodes.trim() == format!("node/{}", first.name()), "{nodes}");
    first.run(&format!("test \"$(readlink /usr/bin/kubelet)\" = {TREE}/bin/kubelet"))?;
    reads_lazily(first)?;
    // A second run finds nothing to do.
    let state = || Ok::<_, anyhow::Error>(lab.state_of_nodes()?.into_iter().next());
    let before = state()?;
    run()?;
    let after = state()?;
    ensure!(after == before, "the second run changed something:\n{before:?}\n{after:?}");
    // Other machines cannot see the directory.
    let mut others = first.command(PROGRAM)?;
    others.args(["cluster", "run", TREE, "--nodes", &lab.machines().all()[1].address().to_string()]);
    let said = process::run_failing(&mut others)?.stderr;
    ensure!(said.contains("a directory is run on this machine alone"), "{said}");

    first.run(&format!("{PROGRAM} cluster rm"))?;
    first.run("test ! -e /etc/systemd/system/nydus-cluster-registry.service")?;
    first
        .run(&format!(
            "test ! -e /usr/bin/kubelet && test ! -e /etc/kubernetes && test -e {TREE}/bin/kubelet"
        ))
        .map(drop)
}

/// Saves some of the directory's images into it.
fn save(lab: &ClusterLab, machine: &Machine) -> Result<()> {
    let url = format!("http://{}/v2/{SAVED_HOST}", lab.registry().address());
    machine.write(
        &format!("/root/certs/{SAVED_HOST}/hosts.toml"),
        format!("[host.\"{url}\"]\n  override_path = true\n"),
    )?;
    machine.write(SAVE_CONFIG, "[registry]\ncerts_dir = \"/root/certs\"\n")?;
    // The lock's first line says what it is.
    let lines = SAVED.map(|image| format!("-e '{image}'")).join(" ");
    machine.run(&format!("grep -e '\"images.lock\"' {lines} {TREE}/images.lock >/root/some.lock"))?;
    let mut save = machine.command(PROGRAM)?;
    save.args(["--config", SAVE_CONFIG, "cluster", "save", TREE, "--lock", "/root/some.lock"]);
    process::run_within(&mut save, RUN_DEADLINE).map(drop)
}

/// The images that are in the directory came lazily, from the registry in it.
fn reads_lazily(machine: &Machine) -> Result<()> {
    machine.run("systemctl is-active nydus-cluster-registry nydus-cluster-serve nydus-cluster-daemon")?;
    let status = machine.run(&format!("{PROGRAM} node status --json"))?.stdout;
    ensure!(status.contains("/nydus-cluster/images@sha256:") && status.contains("127.0.0.1:53"), "{status}");
    for image in SAVED {
        machine.run(&format!("ctr --namespace k8s.io images ls -q | grep -x {image}"))?;
        machine.run(&format!("! ctr --namespace k8s.io images export /tmp/whole.tar {image}"))?;
    }
    Ok(())
}
