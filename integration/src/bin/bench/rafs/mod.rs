//! The image format: building, sizes, memory, merging and opening, compared with nydus-image with the same settings.

mod build;
mod input;
mod memory;
mod merge;
mod own;
mod peer;
mod proof;

use anyhow::Result;
use integration::peers::Peers;

pub(crate) use self::own::Own;
use self::peer::NydusImage;
use crate::figure::Figure;

const GROUP: &str = "rafs";

/// Measures all figures of the group.
pub(crate) fn measure(peers: &Peers, runs: u16) -> Result<Vec<Figure>> {
    let nydus_image = NydusImage::new(peers)?;
    let dir = tempfile::Builder::new().prefix("nydus-cluster-bench-").tempdir()?;
    let big = peers.big_rootfs()?;
    let text = input::texts(&big)?;
    let mut figures = build::measure(&nydus_image, &big, &text, dir.path(), runs)?;
    figures.extend(memory::measure(&text, runs)?);
    figures.extend(merge::measure(&nydus_image, dir.path(), runs)?);
    Ok(figures)
}
