//! Cluster images: how many bytes they take, how long it takes to find what they ask for, to bring it along, and until a
//! cluster of them serves.

mod discover;
mod launch;
mod save;
mod stored;

use anyhow::Result;
use integration::cluster_image::{ClusterImage, Services};
use integration::peers::Peers;

use crate::figure::Figure;

const GROUP: &str = "cluster";
/// What is measured: a Kubernetes and five services.
const SERVICES: Services = Services::Five;

/// Measures all figures of the group.
pub(crate) fn measure(peers: &Peers, runs: u16) -> Result<Vec<Figure>> {
    let image = ClusterImage::make_with_peers(peers, SERVICES)?;
    let dir = tempfile::Builder::new().prefix("nydus-cluster-bench-").tempdir()?;
    let mut figures = stored::measure(&image)?;
    figures.push(discover::measure(peers, &dir.path().join("discover"), runs)?);
    figures.extend(save::measure(peers, &image, &dir.path().join("save"), runs)?);
    // On a real file system: an overlay cannot lie on every one.
    let dir = tempfile::Builder::new().prefix("bench-launch-").tempdir_in(peers.cache())?;
    figures.extend(launch::measure(peers, &image, dir.path(), runs)?);
    Ok(figures)
}
