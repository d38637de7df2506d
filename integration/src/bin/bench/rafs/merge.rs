//! Merging layers, and finding a path in what comes out.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rafs::bootstrap::Bootstrap;

use super::peer::{self, NydusImage};
use super::{GROUP, input, own, proof};
use crate::figure::{Figure, Runs};
use crate::run::{remove, run};

const LAYERS: u32 = 40;
const ENTRIES: u32 = 200_000;
const HALF: f64 = 0.5;
const LOOK_UP_LIMIT_MS: f64 = 1.0;
/// Looking up takes microseconds: this many runs for each of others'.
const LOOK_UPS_A_RUN: u16 = 5;
/// A file of the last layer.
const PATH: &str = "/usr/lib/layer-39/1/file-39-7";

/// Measures the figures of merging and opening.
pub(super) fn measure(nydus_image: &NydusImage, dir: &Path, runs: u16) -> Result<Vec<Figure>> {
    let layers = layers(nydus_image, &dir.join("layers"))?;
    let (our_image, their_image) = (dir.join("ours.boot"), dir.join("theirs.boot"));
    let (mut ours, mut theirs) = (Runs::default(), Runs::default());
    for _ in 0..runs {
        let ran = run(&mut own::merge(&our_image, &layers)?)?;
        remove(&their_image)?;
        let peer = run(&mut nydus_image.merge(&their_image, &layers))?;
        eprintln!("{:8.3} s (peer {:.3} s)  merge", ran.seconds, peer.seconds);
        ours.push(ran.seconds);
        theirs.push(peer.seconds);
    }
    let none = dir.join("no blobs");
    let (shown, expected) =
        (proof::fingerprint(&our_image, &none)?, proof::fingerprint(&their_image, &none)?);
    ensure!(shown == expected, "the sides did not merge to the same: {shown} (ours), {expected} (theirs)");
    nydus_image.check(&our_image)?;
    let inodes = Bootstrap::open(&our_image)?.inode_count();

    let mut opened = Runs::default();
    for _ in 0..runs * LOOK_UPS_A_RUN {
        let ran = run(own::command("look-up")?.arg(&our_image).arg(PATH))?;
        opened.push(ran.stdout.trim().parse().context("what look-up printed")?);
    }
    let limit = Runs::fixed(LOOK_UP_LIMIT_MS);
    let name = format!("merge, {LAYERS} layers, {ENTRIES} entries");
    let open = format!("open and look up a path, {inodes} inodes");
    Ok(vec![
        Figure::new(GROUP, name, "s", (&ours, (peer::NAME, &theirs)), HALF),
        Figure::new(GROUP, open, "ms", (&opened, ("limit", &limit)), 1.0),
    ])
}

/// The bootstraps of a stack of layers, the lowest first, as nydus-image builds them: both sides merge the same.
fn layers(nydus_image: &NydusImage, dir: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let (tar, blob) = (dir.join("layer.tar"), dir.join("layer.blob"));
    let layer = |number| {
        input::layer(number, ENTRIES / LAYERS, &tar)?;
        remove(&blob)?;
        run(&mut nydus_image.create(&tar, &blob))?;
        peer::extract_bootstrap(&blob, dir)
    };
    (0..LAYERS).map(layer).collect()
}
