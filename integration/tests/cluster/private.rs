//! A registry that takes only what a pod's pull secret says, and an image of it that is read lazily.

use anyhow::{Result, ensure};
use integration::access_log::Mark;
use integration::cluster_image::Services;
use integration::cluster_lab::ClusterLab;
use serde_json::json;

const USER: &str = "right";
const PASSWORD: &str = "myPassword";
/// The password's bcrypt hash.
const HASH: &str = "$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC";

/// The cluster image is a nydus image too. Its containerd goes on until it is ended, and no container image has it: `kubectl`, which
/// one shares with it, may be in the node's cache already.
pub(crate) fn is_read_by_a_pull_secret(lab: &ClusterLab, services: Services) -> Result<()> {
    let registry = lab.private_registry(&format!("{USER}:{HASH}\n"))?;
    let (host, worker) = (registry.address().to_string(), &lab.machines().all()[2]);
    let hosts = format!("/etc/containerd/certs.d/{host}");
    worker.write(&format!("{hosts}/hosts.toml"), format!("[host.\"http://{host}\"]\n"))?;
    lab.kubectl(&format!(
        "create secret docker-registry own --docker-server={host} --docker-username={USER} --docker-password={PASSWORD}"
    ))?;
    let spec = json!({"imagePullSecrets": [{"name": "own"}]});
    let image = format!("{host}/{}", services.image());
    lab.run_pod_with("private", &image, worker, &["/bin/containerd"], spec)?;
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
