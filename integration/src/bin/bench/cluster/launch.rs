//! What a launch takes, with images read lazily and with images pulled whole.

use std::path::Path;

use anyhow::{Context, Result};
use integration::cluster_image::{ClusterImage, Pull};
use integration::cluster_lab::ClusterLab;
use integration::launches::{LaunchFigures, Stored, measure as launch};
use integration::peers::Peers;

use super::{GROUP, SERVICES};
use crate::figure::{Figure, Runs};
use crate::lab::{forget_page_cache, touch_memory};

const BYTES_OF_WHOLE_PULLS: f64 = 0.5;
const SERVICES_BYTES_OF_WHOLE_PULLS: f64 = 0.35;
const SECONDS_OF_WHOLE_PULLS: f64 = 0.35;

/// Measures launches on three bare nodes, whose files are under `dir`.
pub(super) fn measure(peers: &Peers, image: &ClusterImage, dir: &Path, runs: u16) -> Result<Vec<Figure>> {
    let stored = |pull| Stored::of(image, SERVICES, pull);
    let (whole_pulls, lazy_reads) = (stored(Pull::Plain)?, stored(Pull::Lazy)?);
    let lab = ClusterLab::start(peers, image, SERVICES, dir)?;
    let (mut ours, mut theirs) = (LaunchRuns::default(), LaunchRuns::default());
    let once = |pull: Pull, stored: &Stored, rm: &[&str]| -> Result<LaunchFigures> {
        let figures = launch(&lab, dir, lab.run_command(pull)?, stored)?;
        lab.cluster(rm).context("for the next launch")?;
        Ok(figures)
    };
    let fresh = |pull: Pull, stored: &Stored, rm: &[&str]| {
        touch_memory();
        forget_page_cache()?;
        once(pull, stored, rm)
    };
    let lazily = || fresh(Pull::Lazy, &lazy_reads, &["rm"]);
    for run in 0..runs {
        // In alternating order: what the machine does by itself falls on both.
        let first = (run % 2 == 1).then(lazily).transpose()?;
        let plain = fresh(Pull::Plain, &whole_pulls, &["rm", "--keep-images"])?;
        // What Kubernetes itself takes.
        let warm = once(Pull::Plain, &whole_pulls, &["rm"])?;
        let lazy = first.map_or_else(lazily, Ok)?;
        eprintln!(
            "{:8.1} s (pulled whole {:.1} s, all there {:.1} s)  all pods serve",
            lazy.serving_s, plain.serving_s, warm.serving_s
        );
        ours.push(&lazy, &warm);
        theirs.push(&plain, &warm);
    }
    let figure = |name: &str, unit, ours: &Runs, theirs: &Runs, goal| {
        Figure::new(GROUP, name, unit, (ours, ("pulled whole", theirs)), goal)
    };
    Ok(vec![
        figure(
            "left the registry until all pods serve",
            "MB",
            &ours.bytes,
            &theirs.bytes,
            BYTES_OF_WHOLE_PULLS,
        ),
        figure(
            "the same, the services alone",
            "MB",
            &ours.services_bytes,
            &theirs.services_bytes,
            SERVICES_BYTES_OF_WHOLE_PULLS,
        ),
        figure(
            "all pods serve, later than with all there",
            "s",
            &ours.later,
            &theirs.later,
            SECONDS_OF_WHOLE_PULLS,
        ),
    ])
}

/// Launches of one side.
#[derive(Debug, Default)]
struct LaunchRuns {
    bytes: Runs,
    services_bytes: Runs,
    later: Runs,
}

impl LaunchRuns {
    fn push(&mut self, figures: &LaunchFigures, warm: &LaunchFigures) {
        self.bytes.push(figures.registry_bytes as f64 / 1e6);
        self.services_bytes.push(figures.services_bytes as f64 / 1e6);
        self.later.push(figures.serving_s - warm.serving_s);
    }
}
