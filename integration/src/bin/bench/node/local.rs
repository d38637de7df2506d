//! The whole tree out of blobs in files of this machine, read through the daemons alone.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use integration::image_files::{ImageFiles, LayerInput};
use integration::process;
use integration::servers::{ImageMount, Nydusd};
use rafs::bootstrap::WriteOptions;
use rafs::build::BuildOptions;

use super::GROUP;
use super::sides::Side;
use crate::figure::{Figure, Runs};
use crate::lab::{Lab, forget_page_cache, touch_memory};

const SIDES: [Side; 3] = [Side::Ours, Side::Upstream, Side::UpstreamPrefetch];
const GOAL: f64 = 0.6;
const READ_ALL: &str = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 cat | cksum";

/// Measures it in as many runs, from the mount on.
pub(super) fn measure(lab: &Lab, runs: u16) -> Result<Figure> {
    let dir = lab.subdir("local")?;
    let tar = lab.peers.big_rootfs()?;
    let (build, write) = (BuildOptions::default(), WriteOptions::default());
    let files = ImageFiles::build(&[LayerInput::TarFile(&tar)], &build, &write, &dir)?;
    let (mut seconds, mut sums) = ([(); SIDES.len()].map(|()| Runs::default()), Vec::new());
    for run in 0..usize::from(runs) {
        for turn in 0..SIDES.len() {
            let side = (run + turn) % SIDES.len();
            let dir = lab.subdir(&format!("local-{run}-{turn}"))?;
            touch_memory();
            forget_page_cache()?;
            let (sum, took) = read_all(lab, SIDES[side], &files, &dir)?;
            eprintln!("{took:8.2}  whole tree of local files, {}", SIDES[side].name());
            seconds[side].push(took);
            sums.push(sum);
            std::fs::remove_dir_all(&dir)?;
        }
    }
    ensure!(
        sums.windows(2).all(|pair| pair[0] == pair[1]),
        "the sides did not read the same bytes: {sums:?}"
    );
    let [ours, upstream, prefetch] = &seconds;
    let peers = [(Side::Upstream.name(), upstream), (Side::UpstreamPrefetch.name(), prefetch)];
    let better = peers.into_iter().min_by(|one, other| one.1.median().total_cmp(&other.1.median()));
    let (peer, theirs) = better.expect("there are peers");
    Ok(Figure::new(GROUP, "whole tree, cache cold, local files", "s", (ours, (peer, theirs)), GOAL))
}

/// Mounts, reads everything and unmounts; a checksum of all, and the time without the unmount.
fn read_all(lab: &Lab, side: Side, files: &ImageFiles, dir: &Path) -> Result<(String, f64)> {
    let start = Instant::now();
    let read = |mountpoint: &Path| -> Result<(String, f64)> {
        let read = process::run(Command::new("sh").arg("-c").arg(READ_ALL).current_dir(mountpoint))?;
        Ok((read.stdout, start.elapsed().as_secs_f64()))
    };
    if side == Side::Ours {
        return read(ImageMount::start(files, dir)?.mountpoint());
    }
    let prefetch = side == Side::UpstreamPrefetch;
    let daemon = Nydusd::start_with(&lab.peers, dir, (&files.bootstrap, &files.blobs), prefetch)?;
    read(daemon.mountpoint())
}
