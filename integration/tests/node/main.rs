//! The node's data plane as a black box: the daemon's process with real mounts, a real cache and real registries.
//!
//! Where something is missing, tests say `skipped: needs …`; with `CI=true` they fail instead.

mod model;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use integration::peers;
use integration::suite::{Lazy, trial};
use libtest_mimic::Arguments;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use model::Lab;

type Test = fn(&Lab) -> Result<()>;

const TESTS: &[(&str, Test)] = &[
    ("model::any_mix_of_images_reads_right", model::any),
    ("model::a_power_cut_costs_no_byte", model::power_cuts),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share registries, and make these fail.
    arguments.test_threads.get_or_insert(1);
    let missing = missing().and_then(|()| apart()).err().map(|error| format!("{error:#}"));
    let lab = Arc::new(Lazy::new());
    let trials = TESTS.iter().map(|(name, test)| {
        let lab = lab.clone();
        trial(name, missing.as_deref(), move || test(lab.get(Lab::new)?))
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    // Servers end with it.
    drop(lab);
    conclusion.exit_code()
}

/// Mounts from here on what nobody outside sees. Whoever makes a namespace of mounts gets a copy of all that he sees, as another
/// test's container does that starts: what the model unmounts meanwhile would be in use for as long as that keeps it.
fn apart() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("making a mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("keeping mounts to ourselves")
}

/// Fails with what the machine lacks.
fn missing() -> Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!("root");
    }
    if !Path::new("/dev/fuse").exists() {
        bail!("/dev/fuse");
    }
    peers::nydus_cluster()?;
    Ok(())
}
