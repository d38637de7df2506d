//! Bytes that a registry stores of a cluster image and all container images that it asks for.

use anyhow::Result;
use integration::cluster_image::{ClusterImage, Pull};

use super::{GROUP, SERVICES};
use crate::figure::{Figure, Runs};

const ONE_VERSION: f64 = 0.88;
/// Of the second, Kubernetes is the same, and most of what the services' packages hold.
const TWO_VERSIONS: f64 = 0.65;
const PEER: &str = "gzip, each layer once";

/// Measures them for one version and for two.
pub(super) fn measure(image: &ClusterImage) -> Result<Vec<Figure>> {
    let figure = |name, versions, goal| -> Result<Figure> {
        let megabytes = |pull| -> Result<Runs> {
            let bytes = image.stored_bytes_of_versions(SERVICES, pull, versions)?;
            Ok(Runs::fixed(bytes as f64 / 1e6))
        };
        let (ours, theirs) = (megabytes(Pull::Lazy)?, megabytes(Pull::Plain)?);
        Ok(Figure::new(GROUP, name, "MB", (&ours, (PEER, &theirs)), goal))
    };
    Ok(vec![
        figure("stored: root file system and all images", 1, ONE_VERSION)?,
        figure("stored: with a second version", 2, TWO_VERSIONS)?,
    ])
}
