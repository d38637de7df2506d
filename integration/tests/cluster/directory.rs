//! The root file system of a cluster image in a directory of a bare node, which is run there.

use std::fs;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use integration::cluster_image::Services;
use integration::cluster_lab::ClusterLab;
use integration::{peers, process};

const PROGRAM: &str = "/root/nydus-cluster";
const CONFIG: &str = "/root/config.toml";
const TREE: &str = "/root/rootfs";
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
    // Other machines cannot see the directory.
    let mut others = first.command(PROGRAM)?;
    others.args(["cluster", "run", TREE, "--nodes", &lab.machines().all()[1].address().to_string()]);
    let said = process::run_failing(&mut others)?.stderr;
    ensure!(said.contains("a directory is run on this machine alone"), "{said}");

    first.run(&format!("{PROGRAM} cluster rm"))?;
    first
        .run(&format!(
            "test ! -e /usr/bin/kubelet && test ! -e /etc/kubernetes && test -e {TREE}/bin/kubelet"
        ))
        .map(drop)
}
