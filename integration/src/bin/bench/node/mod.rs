//! A node compared with upstream's nydus-snapshotter and nydusd, with their prefetch and without: starts of a program and reads of
//! the whole large image, from a registry on this machine and from one that takes 50 ms to answer. And compared with containerd's own ways of
//! pulling, over a link of 1 Gbit/s.
//!
//! - `sides`: who runs containers.
//! - `link`: the image in the forms that they pull over that link.
//! - `local`: daemons alone, with files of this machine.

mod link;
mod local;
mod sides;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::access_log::bytes_sent;
use integration::cri::ContainerSpec;
use integration::fault_proxy::{Failure, FaultProxy, Rule};

use self::link::LinkImages;
use self::sides::{Fresh, Side};
use crate::figure::{Figure, Runs};
use crate::lab::{Lab, forget_page_cache, touch_memory};
use crate::main_job::{PROGRAM, big_context, dockerfile};

const GROUP: &str = "node";
const ROUND_TRIP: Duration = Duration::from_millis(50);
/// Containers that start at once.
const AT_ONCE: usize = 8;
/// Images that are mounted at once, all on one base.
const IDLE_IMAGES: usize = 20;
const IDLE: Duration = Duration::from_secs(20);
/// Every byte of the image, and proof that all sides read the same.
const HASH_ALL: &str = "find / -xdev -type f -print0 | LC_ALL=C sort -z | xargs -0 cat | sha256sum";
/// The same without what all sides need for a digest, which would hide the half of what differs.
const READ_ALL: &str = "find / -xdev -type f -print0 | LC_ALL=C sort -z | xargs -0 cat | cksum";
const STAT_ALL: &str = "find / -xdev -printf '%s\\n' | sha256sum";

const SIDES: [Side; 3] = [Side::Ours, Side::Upstream, Side::UpstreamPrefetch];

/// What is measured, with the goal compared with the better of the peers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Measure {
    Start,
    StartFar,
    StartBytes,
    ReadAll,
    ReadAllFar,
    PullAndReadAll,
    PullAndReadAllLink,
    ReadWarm,
    StatAll,
    AtOnce,
    AtOnceBytes,
    Idle,
}

const FIGURES: [(Measure, &str, &str, f64); 11] = [
    (Measure::Start, "cold import numpy, CRI in all", "s", 0.55),
    (Measure::StartFar, "the same, 50 ms round trip", "s", 0.6),
    (Measure::StartBytes, "bytes fetched until numpy ends", "MB", 0.8),
    (Measure::ReadAll, "whole tree, cache cold", "s", 0.6),
    (Measure::ReadAllFar, "the same, 50 ms round trip", "s", 1.0),
    (Measure::PullAndReadAll, "pull and read everything", "s", 0.9),
    (Measure::PullAndReadAllLink, "the same, four layers over 1 Gbit/s", "s", 1.0),
    (Measure::ReadWarm, "whole tree, cache warm, page cache cold", "s", 0.7),
    (Measure::StatAll, "find -printf %s, cold", "s", 0.75),
    (Measure::AtOnce, "8 containers of one image at once", "s", 0.6),
    (Measure::Idle, "20 images mounted and idle, PSS", "MB", 0.75),
];

/// What eight containers at once fetch of what one does.
const OF_ONE: f64 = 1.0;

/// Measures all figures of the group.
pub(crate) fn measure(lab: &Lab, runs: u16) -> Result<Vec<Figure>> {
    let context = big_context(lab)?;
    dockerfile(&context, "/")?;
    let near = lab.registry.address();
    lab.buildctl()?.build(&context, &[&format!("type=nydus-cluster,name={near}/node:v1")])?;
    let proxy = FaultProxy::start(near)?;
    let idle = idle_images(lab, &context)?;
    let linked = LinkImages::make(lab, &context)?;
    proxy.set_rules(vec![Rule::always("/", Failure::Delay(ROUND_TRIP))]);
    let (near, far) = (format!("{near}/node:v1"), format!("{}/node:v1", proxy.address()));

    let mut bench =
        Bench { lab, results: Vec::new(), trees: Vec::new(), sums: Vec::new(), linked: Vec::new() };
    for run in 0..runs {
        // In alternating order: what the machine does by itself falls on all sides.
        let mut sides = SIDES;
        sides.rotate_left(usize::from(run) % SIDES.len());
        for side in sides {
            bench.start(side, &near, Measure::Start)?;
            bench.start(side, &far, Measure::StartFar)?;
            bench.whole_tree(side, &near)?;
            bench.whole_tree_far(side, &far)?;
            bench.at_once(side, &near)?;
        }
        let mut sides = link::SIDES;
        sides.rotate_left(usize::from(run) % link::SIDES.len());
        for side in sides {
            bench.over_link(side, &linked)?;
        }
        bench.idle(Side::Ours, &idle)?;
        bench.idle(Side::UpstreamShared, &idle)?;
    }
    for read in [&bench.trees, &bench.sums, &bench.linked] {
        let same = read.windows(2).all(|pair| pair[0] == pair[1]);
        ensure!(same, "the sides did not read the same bytes: {read:?}");
    }
    let mut figures: Vec<_> = FIGURES.into_iter().map(|figure| bench.figure(figure)).collect();
    figures.push(bench.bytes_at_once());
    figures.push(local::measure(lab, runs)?);
    Ok(figures)
}

/// Images that differ by a small layer on the large one.
fn idle_images(lab: &Lab, context: &Path) -> Result<Vec<String>> {
    let text = "FROM scratch\nADD big.tar /\nCOPY small /small\n";
    fs::write(context.join("Dockerfile"), text).context("writing the Dockerfile")?;
    let images = (0..IDLE_IMAGES).map(|index| format!("{}/idle-{index}:v1", lab.registry.address()));
    let images: Vec<_> = images.collect();
    for image in &images {
        fs::write(context.join("small"), image).context("writing a small file")?;
        lab.buildctl()?.build(context, &[&format!("type=nydus-cluster,name={image}")])?;
    }
    Ok(images)
}

struct Bench<'a> {
    lab: &'a Lab,
    results: Vec<(Side, Measure, f64)>,
    /// Hashes of all that was read.
    trees: Vec<String>,
    /// Checksums of each reading that was timed.
    sums: Vec<String>,
    /// The same of the image in layers, in which containerd's versions differ in what they add.
    linked: Vec<String>,
}

impl Bench<'_> {
    fn fresh(&self, side: Side) -> Result<Fresh> {
        Fresh::new(self.lab, side, &format!("node-{}", self.results.len()))
    }

    fn note(&mut self, side: Side, what: Measure, value: f64) {
        eprintln!("{value:8.2}  {what:?}, {}", side.name());
        self.results.push((side, what, value));
    }

    fn start(&mut self, side: Side, image: &str, what: Measure) -> Result<()> {
        let fresh = self.fresh(side)?;
        let log = self.lab.registry.access_log();
        let mark = log.mark()?;
        let start = Instant::now();
        fresh.node()?.cri().pull(image)?;
        fresh.run_all(&[ContainerSpec::new("program", image, &PROGRAM)])?;
        let seconds = start.elapsed().as_secs_f64();
        if what == Measure::Start {
            self.note(side, Measure::StartBytes, bytes_sent(&log.since(mark)?) as f64 / 1e6);
        }
        self.note(side, what, seconds);
        Ok(())
    }

    fn whole_tree(&mut self, side: Side, image: &str) -> Result<()> {
        let fresh = self.fresh(side)?;
        let start = Instant::now();
        fresh.node()?.cri().pull(image)?;
        let pull = start.elapsed().as_secs_f64();
        let (tree, seconds) = fresh.run("cold", image, READ_ALL)?;
        self.sums.push(tree);
        self.note(side, Measure::ReadAll, seconds);
        self.note(side, Measure::PullAndReadAll, pull + seconds);
        touch_memory();
        forget_page_cache()?;
        let (tree, seconds) = fresh.run("warm", image, READ_ALL)?;
        self.sums.push(tree);
        self.note(side, Measure::ReadWarm, seconds);
        self.trees.push(fresh.run("hash", image, HASH_ALL)?.0);
        forget_page_cache()?;
        let (_, seconds) = fresh.run("stat", image, STAT_ALL)?;
        self.note(side, Measure::StatAll, seconds);
        Ok(())
    }

    fn whole_tree_far(&mut self, side: Side, image: &str) -> Result<()> {
        let fresh = self.fresh(side)?;
        fresh.node()?.cri().pull(image)?;
        let (tree, seconds) = fresh.run("far", image, READ_ALL)?;
        self.sums.push(tree);
        self.note(side, Measure::ReadAllFar, seconds);
        Ok(())
    }

    fn over_link(&mut self, side: Side, images: &LinkImages) -> Result<()> {
        let (fresh, image) = (self.fresh(side)?, images.of(side));
        let start = Instant::now();
        fresh.node()?.cri().pull(&image)?;
        let (tree, _) = fresh.run("link", &image, READ_ALL)?;
        self.note(side, Measure::PullAndReadAllLink, start.elapsed().as_secs_f64());
        self.linked.push(tree);
        Ok(())
    }

    fn at_once(&mut self, side: Side, image: &str) -> Result<()> {
        let fresh = self.fresh(side)?;
        let log = self.lab.registry.access_log();
        let mark = log.mark()?;
        fresh.node()?.cri().pull(image)?;
        let containers: Vec<_> = (0..AT_ONCE)
            .map(|index| ContainerSpec::new(&format!("program-{index}"), image, &PROGRAM))
            .collect();
        let start = Instant::now();
        fresh.run_all(&containers)?;
        self.note(side, Measure::AtOnce, start.elapsed().as_secs_f64());
        self.note(side, Measure::AtOnceBytes, bytes_sent(&log.since(mark)?) as f64 / 1e6);
        Ok(())
    }

    /// Memory once a container of each image sleeps.
    fn idle(&mut self, side: Side, images: &[String]) -> Result<()> {
        let fresh = self.fresh(side)?;
        let node = fresh.node()?;
        for (index, image) in images.iter().enumerate() {
            node.cri().pull(image)?;
            let sleeper = ContainerSpec::new(&format!("idle-{index}"), image, &["sleep", "infinity"]);
            node.cri().run_container(&fresh.pod, &sleeper)?;
        }
        // Idle for a while: who gives memory back then has done it.
        thread::sleep(IDLE);
        let memory = node.snapshotter_memory()?;
        memory.iter().for_each(|(pid, bytes)| eprintln!("{:8.2} MB in process {pid}", *bytes as f64 / 1e6));
        self.note(side, Measure::Idle, memory.iter().map(|(_, bytes)| *bytes as f64 / 1e6).sum());
        Ok(())
    }

    fn runs(&self, side: Side, what: Measure) -> Runs {
        let mut runs = Runs::default();
        let of = self.results.iter().filter(|(of, measured, _)| (*of, *measured) == (side, what));
        of.for_each(|(_, _, value)| runs.push(*value));
        runs
    }

    /// Compared with the better of the peers.
    fn figure(&self, (what, name, unit, goal): (Measure, &str, &'static str, f64)) -> Figure {
        let peers = [
            Side::Upstream,
            Side::UpstreamPrefetch,
            Side::UpstreamShared,
            Side::Overlayfs,
            Side::ParallelOverlayfs,
            Side::Erofs,
        ];
        let measured = peers.map(|side| (side.name(), self.runs(side, what)));
        // A side that was not measured has no median, which comes after all others.
        let better = measured.iter().min_by(|one, other| one.1.median().total_cmp(&other.1.median()));
        let (peer, runs) = better.expect("there are peers");
        Figure::new(GROUP, name, unit, (&self.runs(Side::Ours, what), (peer, runs)), goal)
    }
    /// What our containers at once fetch, compared with what one of them does.
    fn bytes_at_once(&self) -> Figure {
        let [eight, one] =
            [Measure::AtOnceBytes, Measure::StartBytes].map(|what| self.runs(Side::Ours, what));
        let name = "bytes fetched by 8 containers at once";
        Figure::new(GROUP, name, "MB", (&eight, ("ours, one container", &one)), OF_ONE)
    }
}
