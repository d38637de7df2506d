//! `cluster images --lock` and `--check`: what the images are, and whether that is still so.

use std::path::Path;
use std::process::ExitCode;

use cluster::discover::Discovery;
use cluster::lock::{self, Lock, ResolveOptions, Resolved};
use registry::client::Client;

use super::args;
use super::opened::Opened;
use crate::config::Config;
use crate::stdout::{self, note};

/// Looks up the images and writes the lock `path`, unless one of them is not there.
pub(super) async fn write(
    config: &Config,
    flags: &args::Images,
    opened: &Opened,
    found: &Discovery,
    path: &Path,
) -> anyhow::Result<ExitCode> {
    let before = if path.exists() { Some(Lock::read(path)?) } else { None };
    let obeyed = before.as_ref().filter(|_| !flags.update);
    let options = options(flags, flags.platform.clone());
    let resolved = resolve(config, opened, found, &options, obeyed).await?;
    if !found.problems.is_empty() || !resolved.problems.is_empty() {
        note(&format!("{} is not written: images may be missing", path.display()));
        return Ok(ExitCode::FAILURE);
    }
    resolved.lock.write(path)?;
    for change in before.iter().flat_map(|before| lock::changes(before, &resolved.lock)) {
        note(&format!("{change}"));
    }
    note(&format!("{}: {} images", path.display(), resolved.lock.images.len()));
    Ok(ExitCode::SUCCESS)
}

/// Looks up the images and prints what the lock `path` does not say, or says otherwise.
pub(super) async fn check(
    config: &Config,
    flags: &args::Images,
    opened: &Opened,
    found: &Discovery,
    path: &Path,
) -> anyhow::Result<ExitCode> {
    let locked = Lock::read(path)?;
    let platforms = if flags.platform.is_empty() { locked.platforms.clone() } else { flags.platform.clone() };
    let resolved = resolve(config, opened, found, &options(flags, platforms), None).await?;
    let changes = lock::changes(&locked, &resolved.lock);
    for change in &changes {
        stdout::print(&format!("{change}\n"))?;
    }
    let same = changes.is_empty() && found.problems.is_empty() && resolved.problems.is_empty();
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn options(flags: &args::Images, platforms: Vec<image::platform::PlatformName>) -> ResolveOptions {
    ResolveOptions { platforms, allow_missing: flags.allow_missing.clone(), ..ResolveOptions::default() }
}

/// Looks up the images, and says which are not there.
async fn resolve(
    config: &Config,
    opened: &Opened,
    found: &Discovery,
    options: &ResolveOptions,
    obeyed: Option<&Lock>,
) -> anyhow::Result<Resolved> {
    let client = Client::new(config.registry.clone())?;
    let archives = found.images.iter().filter_map(|image| image.archive.as_ref());
    let root = opened.archives(config, archives).await?;
    let resolved = lock::resolve(found, root, &client, options, obeyed).await?;
    for warning in &resolved.warnings {
        note(&format!("warning: {warning}"));
    }
    for problem in &resolved.problems {
        note(&format!("error: {problem}"));
    }
    Ok(resolved)
}
