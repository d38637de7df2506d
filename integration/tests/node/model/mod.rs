//! A model of the whole data plane: what every image shows is known, whatever happens to the node. Layers, images, whether they
//! are in registries, local directories or HTTP directories, how the daemon is set, what is done with them and what goes wrong
//! follow from a seed.
//!
//! What must hold: content is the model's; every mounted image reads all its files whatever else is mounted; an error
//! only where something could not be fetched, and in time; who reads goes on while another daemon takes over; what is pinned
//! stays, and the cache takes no more than it may; with all images removed it holds nothing; nothing leaks; the daemon never ends.
//!
//! | variable | meaning |
//! |---|---|
//! | `NODE_MODEL_SEED` | this run alone |
//! | `NODE_MODEL_SECONDS` | begin runs until so much time has passed; 45 unless said, and 12 of power cuts |
//! | `NODE_MODEL_FIRST_SEED` | the seed of the first run; 1 unless said, so that short runs are alike |
//! | `NODE_MODEL_OPERATIONS` | operations of a run; 40 unless said |
//! | `NODE_MODEL_KEEP` | numbers of operations, with commas: those alone are done |
//! | `NODE_MODEL_SHRINK` | after a failure, find operations that can be left out |

mod availability;
mod daemon;
mod hostile;
mod image;
mod lab;
mod layers;
mod machine;
mod operation;
mod power_cut;
mod random;
mod reading;
mod tamper;
mod web;
mod world;

use std::env;
use std::fmt::Display;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow};

pub(crate) use lab::Lab;

use daemon::Daemon;
use machine::Machine;
use operation::{DEADLINE, Mix, Operation, QUOTAS};
use random::Random;
use world::World;

/// How many attempts shrinking may take.
const SHRINK_ATTEMPTS: usize = 60;

/// Runs of everything that happens to a node.
pub(crate) fn any(lab: &Lab) -> Result<()> {
    runs(lab, Mix::Any, 45)
}

/// Runs in which the power is cut again and again.
pub(crate) fn power_cuts(lab: &Lab) -> Result<()> {
    runs(lab, Mix::PowerCuts, 12)
}

/// Runs, one seed after the other, for so many seconds unless somebody says otherwise.
fn runs(lab: &Lab, mix: Mix, seconds: u64) -> Result<()> {
    let operations = setting("NODE_MODEL_OPERATIONS")?.unwrap_or(40);
    if let Some(seed) = setting("NODE_MODEL_SEED")? {
        return run(lab, mix, seed, operations);
    }
    let time = Duration::from_secs(setting("NODE_MODEL_SECONDS")?.unwrap_or(seconds));
    let first: u64 = setting("NODE_MODEL_FIRST_SEED")?.unwrap_or(1);
    let started = Instant::now();
    let mut seed = first;
    while started.elapsed() < time {
        run(lab, mix, seed, operations)?;
        seed += 1;
    }
    println!(
        "model, {mix:?}: {} runs of {operations} operations, seeds {first} to {}, in {:?}",
        seed - first,
        seed - 1,
        started.elapsed()
    );
    Ok(())
}

fn setting<T: FromStr<Err: Display>>(name: &str) -> Result<Option<T>> {
    match env::var(name) {
        Ok(text) => text.parse().map(Some).map_err(|error| anyhow!("{name}={text}: {error}")),
        Err(_) => Ok(None),
    }
}

fn run(lab: &Lab, mix: Mix, seed: u64, count: usize) -> Result<()> {
    let mut random = Random::new(seed);
    let operations = Operation::list(&mut random, mix, count);
    let test = match mix {
        Mix::Any => "model::any_mix",
        Mix::PowerCuts => "model::a_power_cut",
    };
    let kept: Vec<usize> = match setting::<String>("NODE_MODEL_KEEP")? {
        None => (0..operations.len()).collect(),
        Some(list) => {
            let numbers: Result<Vec<usize>, _> = list.split(',').map(str::parse).collect();
            numbers
                .context("NODE_MODEL_KEEP")?
                .into_iter()
                .filter(|number| *number < operations.len())
                .collect()
        }
    };
    let result = attempt(lab, seed, &operations, &kept);
    let Err(error) = result else { return Ok(()) };
    let how = |kept: &[usize]| {
        let list: Vec<String> = kept.iter().map(ToString::to_string).collect();
        format!(
            "NODE_MODEL_SEED={seed} NODE_MODEL_OPERATIONS={count} NODE_MODEL_KEEP={} cargo test -p integration --test node -- {test}",
            list.join(",")
        )
    };
    let error = error.context(format!("repeat it with: {}", how(&kept)));
    if env::var_os("NODE_MODEL_SHRINK").is_none() {
        return Err(error);
    }
    let (kept, smaller) = shrink(lab, seed, &operations, kept, error);
    Err(smaller.context(format!("the least that was found: {}", how(&kept))))
}

/// Leaves operations out, many at once and then fewer, for as long as something fails.
fn shrink(
    lab: &Lab,
    seed: u64,
    operations: &[Operation],
    mut kept: Vec<usize>,
    mut error: Error,
) -> (Vec<usize>, Error) {
    let mut attempts = 0;
    let mut size = kept.len() / 2;
    while size > 0 {
        let mut start = 0;
        while start < kept.len() && attempts < SHRINK_ATTEMPTS {
            let mut fewer = kept.clone();
            fewer.drain(start..(start + size).min(kept.len()));
            attempts += 1;
            match attempt(lab, seed, operations, &fewer) {
                Err(found) => (kept, error) = (fewer, found),
                Ok(()) => start += size,
            }
        }
        size /= 2;
    }
    (kept, error)
}

/// One run: a world, a daemon, and what is done to them.
fn attempt(lab: &Lab, seed: u64, operations: &[Operation], kept: &[usize]) -> Result<()> {
    let started = Instant::now();
    let dir = tempfile::Builder::new().prefix("run-").tempdir_in(lab.dir())?;
    // Other numbers than the operations', which do not depend on how many the world takes.
    let mut random = Random::new(seed ^ u64::MAX);
    let world = World::random(&mut random, lab, dir.path(), &format!("seed-{seed}"))?;
    let made = started.elapsed();
    let settings = Settings::random(&mut random);
    let daemon = Daemon::start(lab, &dir.path().join("d"), &settings.config())?;
    let mut machine = Machine::new(lab, &world, daemon, settings.quota)?;
    let mut trace = String::new();
    let mut steps = || {
        for &number in kept {
            let operation = &operations[number];
            let begun = Instant::now();
            let done = machine.step(operation);
            let note = match &done {
                Ok(true) => "",
                Ok(false) => " (nothing to do)",
                Err(_) => " FAILED",
            };
            trace += &format!("{number:4} {:.1?} {operation:?}{note}\n", begun.elapsed());
            done.with_context(|| format!("operation {number}: {operation:?}"))?;
        }
        machine.finish().context("after the last operation")
    };
    let result = steps();
    result.map_err(|error| {
        let images: Vec<String> =
            world.images.iter().map(|image| format!("{} {:?}", image.name, image.homes)).collect();
        let log = machine.log_tail();
        error.context(format!(
            "{}\n{settings:?}\n{trace}--- end of the daemon's log ---\n{log}",
            images.join("\n")
        ))
    })?;
    println!(
        "seed {seed}: {} operations on {} images in {:.1?}, of which {made:.1?} to make them",
        kept.len(),
        world.images.len(),
        started.elapsed()
    );
    Ok(())
}

/// How a run's daemon is set.
#[derive(Debug)]
struct Settings {
    request_bytes: u64,
    read_ahead_kib: u64,
    /// Requests are noted for the next daemon, as before Linux 6.9.
    keeps_journals: bool,
    /// Bytes that the cache may take; 0: as it likes.
    quota: u64,
    /// Seconds after which all of an image is fetched; 0: not.
    complete_after: u64,
}

impl Settings {
    fn random(random: &mut Random) -> Self {
        Self {
            request_bytes: *random.one_of(&[64 << 10, 256 << 10, 1 << 20]),
            read_ahead_kib: *random.one_of(&[0, 128, 1024]),
            keeps_journals: random.chance(30),
            quota: *random.one_of(&QUOTAS),
            complete_after: *random.one_of(&[0, 0, 1]),
        }
    }

    /// Of a daemon that does not wait long, for runs are short.
    fn config(&self) -> String {
        let Self { request_bytes, read_ahead_kib, keeps_journals, quota, complete_after } = self;
        let journal = if *keeps_journals { "always" } else { "auto" };
        format!(
            "[log]\nlevel = \"debug\"\n[registry.retries]\nattempts = 2\nfirst_delay_seconds = 0.05\n\
             [daemon]\njournal = \"{journal}\"\ncache_quota_bytes = {quota}\n\
             [daemon.read]\ndeadline_seconds = {}\nrequest_bytes = {request_bytes}\nread_ahead_kib = {read_ahead_kib}\n\
             [daemon.prefetch]\ncomplete_after_seconds = {complete_after}\n",
            DEADLINE.as_secs()
        )
    }
}
