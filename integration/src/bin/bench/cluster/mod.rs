//! Cluster images: how many bytes they take, how long it takes to find what they ask for, and to bring it along.

mod discover;
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
    Ok(figures)
}
