//! `--cluster`: three bare nodes on a link of 1 Gbit/s become a Kubernetes that serves: with images read lazily, with images pulled
//! whole, once more with all of them there, and from a package, without a registry.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Result;
use integration::cluster_image::{ClusterImage, Pull, Services};
use integration::cluster_lab::ClusterLab;
use integration::launches::{LaunchFigures, Stored, measure};
use integration::peers::Peers;
use serde::Serialize;

/// The table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ClusterReport {
    nodes_ready: usize,
    pods_serving: usize,
    /// Cluster image and container images read lazily.
    lazy: LaunchFigures,
    /// The cluster image mounted lazily, container images pulled whole by containerd.
    plain: LaunchFigures,
    /// The same with all images on the nodes: what Kubernetes itself takes.
    warm: LaunchFigures,
    /// From a package that the first node serves, the registry ended: stored is the file, which is brought to that node meanwhile.
    package: LaunchFigures,
}

/// Runs the cluster and measures; leaves it running in `dir`.
pub(crate) fn run(peers: &Peers, dir: &Path, services: Services) -> Result<(ClusterReport, ClusterLab)> {
    eprintln!("building the cluster image, if it is not there");
    let image = ClusterImage::make(peers, services)?;
    let stored = |pull| Stored::of(&image, services, pull);
    eprintln!("booting three bare nodes");
    let mut lab = ClusterLab::start(peers, &image, services, dir)?;
    eprintln!("running the cluster with images pulled whole, nothing on the nodes");
    let plain = measure(&lab, dir, lab.run_command(Pull::Plain)?, &stored(Pull::Plain)?)?;
    eprintln!("running it again, images on the nodes");
    lab.cluster(&["rm", "--keep-images"])?;
    let warm = measure(&lab, dir, lab.run_command(Pull::Plain)?, &stored(Pull::Plain)?)?;
    eprintln!("running it with images read lazily, nothing on the nodes");
    lab.cluster(&["rm"])?;
    let lazy = measure(&lab, dir, lab.run_command(Pull::Lazy)?, &stored(Pull::Lazy)?)?;
    eprintln!("writing a package, and running it without the registry, nothing on the nodes");
    lab.cluster(&["rm"])?;
    let file = dir.join("cluster.tar");
    image.package(services, services.image(), &file)?;
    lab.end_registry()?;
    let packed = Stored { bytes: fs::metadata(&file)?.len(), ..Stored::default() };
    let package = measure(&lab, dir, lab.package_command(&file, 1)?, &packed)?;
    let (nodes_ready, pods_serving) = (lab.nodes_ready()?, lab.pods_ready()?);
    Ok((ClusterReport { nodes_ready, pods_serving, lazy, plain, warm, package }, lab))
}

impl fmt::Display for ClusterReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        let seconds = |seconds: f64| format!("{seconds:.1} s");
        let columns = [&self.lazy, &self.plain, &self.warm, &self.package];
        let rows = [
            ("stored", columns.map(|figures| megabytes(figures.stored_bytes))),
            ("left the registry", columns.map(|figures| megabytes(figures.registry_bytes))),
            ("of this for services", columns.map(|figures| megabytes(figures.services_bytes))),
            ("all nodes ready", columns.map(|figures| seconds(figures.ready_s))),
            ("all pods serve", columns.map(|figures| seconds(figures.serving_s))),
        ];
        writeln!(out, "{} nodes ready, {} pods serve\n", self.nodes_ready, self.pods_serving)?;
        let [lazy, plain, warm, package] = ["lazy", "plain images", "warm (images there)", "package"];
        writeln!(out, "{:<24}{lazy:>16}{plain:>16}{warm:>20}{package:>16}", "")?;
        for (name, [lazy, plain, warm, package]) in rows {
            writeln!(out, "{name:<24}{lazy:>16}{plain:>16}{warm:>20}{package:>16}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_says_the_same_of_every_launch() {
        let figures = LaunchFigures {
            stored_bytes: 1,
            registry_bytes: 2,
            services_bytes: 3,
            ready_s: 4.0,
            serving_s: 5.0,
        };
        let [lazy, plain, warm, package] = [(); 4].map(|()| figures.clone());
        let report = ClusterReport { nodes_ready: 3, pods_serving: 6, lazy, plain, warm, package };
        let said = serde_json::to_value(&report).unwrap();
        assert_eq!((said["nodes_ready"].as_u64(), said["pods_serving"].as_u64()), (Some(3), Some(6)));
        for launch in ["lazy", "plain", "warm"] {
            let launch = &said[launch];
            assert!(launch["stored_bytes"].is_u64() && launch["registry_bytes"].is_u64(), "{said:#}");
            assert!(launch["ready_s"].is_f64() && launch["serving_s"].is_f64(), "{said:#}");
        }
    }
}
