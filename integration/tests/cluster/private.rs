//! A registry that takes only what a pod's pull secret says, and an image of it that is read lazily.

use anyhow::{Result, ensure};
use integration::access_log::Mark;
use integration::cluster_lab::ClusterLab;
use integration::machines::Machine;
use serde_json::json;

/// The image, and what it is made from, in the lab's registry.
const IMAGE: &str = "private/pause:v1";
const PLAIN: &str = "registry.k8s.io/pause:3.10.2";
const PROGRAM: &str = "/var/lib/nydus-cluster/bin/nydus-cluster";
const CONFIG: &str = "/root/convert.toml";
const USER: &str = "right";
const PASSWORD: &str = "myPassword";
/// The password's bcrypt hash.
const HASH: &str = "$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC";

/// A nydus image of its own, since the daemon has the blobs of all others: the cluster image's too, which it has mounted.
pub(crate) fn is_read_by_a_pull_secret(lab: &ClusterLab) -> Result<()> {
    let worker = &lab.machines().all()[2];
    convert(lab, worker)?;
    let registry = lab.private_registry(&format!("{USER}:{HASH}\n"))?;
    let host = registry.address().to_string();
    let hosts = format!("/etc/containerd/certs.d/{host}");
    worker.write(&format!("{hosts}/hosts.toml"), format!("[host.\"http://{host}\"]\n"))?;
    lab.kubectl(&format!(
        "create secret docker-registry own --docker-server={host} --docker-username={USER} --docker-password={PASSWORD}"
    ))?;
    let spec = json!({"imagePullSecrets": [{"name": "own"}]});
    let image = format!("{host}/{IMAGE}");
    lab.run_pod_with("private", &image, worker, &[], spec)?;
    let requests = registry.access_log().since(Mark::default())?;
    let of_blobs = requests.iter().filter(|request| request.path.contains("/blobs/"));
    let (refused, read): (Vec<_>, Vec<_>) = of_blobs.partition(|request| request.status == 401);
    ensure!(
        read.iter().any(|request| request.status == 206),
        "nothing was read in parts: {read:#?} {refused:#?}"
    );
    // Nobody can read it any more: it must not be among the images that later tests wait for.
    lab.kubectl("delete pod private --now")?;
    let digest = format!("ctr --namespace k8s.io images ls name=={image} | awk 'END {{ print $3 }}'");
    let names =
        format!("ctr --namespace k8s.io images ls | awk -v digest=$({digest}) '$3 == digest {{ print $1 }}'");
    worker.run(&format!("{names} | xargs ctr --namespace k8s.io images rm --sync"))?;
    worker.run(&format!("rm -r {hosts}")).map(drop)
}

/// Makes the image of one that nobody has as this: its blobs are compressed otherwise than those that are saved.
fn convert(lab: &ClusterLab, machine: &Machine) -> Result<()> {
    let registry = lab.registry().address();
    machine.write(CONFIG, format!("[registry.hosts.\"{registry}\"]\nplain_http = true\n"))?;
    let convert = "image convert --layer-cache '' --compressor lz4";
    machine.run(&format!("{PROGRAM} --config {CONFIG} {convert} {registry}/{PLAIN} {registry}/{IMAGE}"))?;
    machine.run(&format!("rm {CONFIG}")).map(drop)
}
