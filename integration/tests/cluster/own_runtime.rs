//! A cluster image that makes its cluster by its own hooks: a plain one, with a template, launched in sealer's words.

use anyhow::{Result, ensure};
use integration::cluster_image::ClusterImage;
use integration::cluster_lab::ClusterLab;

/// On machines that have no cluster.
pub(crate) fn becomes_a_cluster(lab: &ClusterLab, image: &ClusterImage) -> Result<()> {
    let name = image.push_own_runtime(lab.registry())?;
    let run = || lab.run_of(&name);
    run()?;
    let [first, second, third] = lab.machines().all() else { anyhow::bail!("not three machines") };
    let expected = [
        (
            first,
            format!("color is green\nfirst master {0}\nlaunched of default, kind: Config\n", first.address()),
        ),
        (second, format!("node {} joins {} with token-of-first\n", second.address(), first.address())),
        (third, format!("node {} joins {} with token-of-first\n", third.address(), first.address())),
    ];
    let is_so = || -> Result<()> {
        for (machine, expected) in &expected {
            let said = machine.run("cat /run/own-runtime")?.stdout;
            ensure!(said == *expected, "{} says:\n{said}", machine.name());
        }
        Ok(())
    };
    is_so()?;
    // Where images are pulled whole, a node's own containerd is told where they are, and nothing else.
    let config = second.run("cat /etc/containerd/config.toml")?.stdout;
    ensure!(config.contains("certs.d") && !config.contains("snapshotter"), "{config}");
    // A second run finds nothing to do.
    run()?;
    is_so()?;
    lab.cluster(&["rm"])?;
    for machine in lab.machines().all() {
        machine.run("test ! -e /run/own-runtime && test ! -e /var/lib/nydus-cluster/cluster")?;
    }
    Ok(())
}
