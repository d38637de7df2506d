//! `cluster images --lock` and `--check`: what the images are, and whether that is still so.

use std::path::Path;
use std::process::ExitCode;

use cluster::discover::Discovery;
use cluster::lock::{self, Lock, ResolveOptions, Resolved};
use image::platform::PlatformName;
use registry::client::Client;

use super::args;
use super::opened::Opened;
use crate::config::Config;
use crate::status::Found;
use crate::stdout::{self, note};

/// The images that were found, which are looked up.
pub(super) struct Lookup<'a> {
    pub(super) config: &'a Config,
    pub(super) flags: &'a args::Images,
    pub(super) opened: &'a Opened,
    pub(super) found: &'a Discovery,
}

impl Lookup<'_> {
    /// Writes the lock `path`, unless an image is not there.
    pub(super) async fn write(&self, path: &Path) -> anyhow::Result<ExitCode> {
        let before = if path.exists() { Some(Lock::read(path)?) } else { None };
        let obeyed = before.as_ref().filter(|_| !self.flags.update);
        let resolved = self.resolve(self.platforms(before.as_ref()), obeyed).await?;
        if self.has_problems(&resolved) {
            note(&format!("{} is not written: images may be missing", path.display()));
            return Ok(Found::UnclearImages.status());
        }
        resolved.lock.write(path)?;
        for change in before.iter().flat_map(|before| lock::changes(before, &resolved.lock)) {
            note(&format!("{change}"));
        }
        note(&format!("{}: {} images", path.display(), resolved.lock.images.len()));
        Ok(ExitCode::SUCCESS)
    }

    /// Prints what the lock `path` does not say, or says otherwise.
    pub(super) async fn check(&self, path: &Path) -> anyhow::Result<ExitCode> {
        let locked = Lock::read(path)?;
        let resolved = self.resolve(self.platforms(Some(&locked)), None).await?;
        let changes = lock::changes(&locked, &resolved.lock);
        for change in &changes {
            stdout::print(&format!("{change}\n"))?;
        }
        Ok(Found::UnclearImages.status_if(!changes.is_empty() || self.has_problems(&resolved)))
    }

    /// The platforms that are asked for; those of a lock that is there unless others are given.
    fn platforms(&self, lock: Option<&Lock>) -> Vec<PlatformName> {
        match (&self.flags.platform[..], lock) {
            ([], Some(lock)) => lock.platforms.clone(),
            (wanted, _) => wanted.to_vec(),
        }
    }

    /// Whether images may be missing.
    fn has_problems(&self, resolved: &Resolved) -> bool {
        !self.found.problems.is_empty() || !resolved.problems.is_empty()
    }

    /// Looks up the images, and says which are not there.
    async fn resolve(&self, platforms: Vec<PlatformName>, obeyed: Option<&Lock>) -> anyhow::Result<Resolved> {
        let client = Client::new(self.config.registry.clone())?;
        let allow_missing = self.flags.allow_missing.clone();
        let options = ResolveOptions { platforms, allow_missing, ..ResolveOptions::default() };
        let archives = self.found.images.iter().filter_map(|image| image.archive.as_ref());
        let root = self.opened.archives(self.config, archives).await?;
        let resolved = lock::resolve(self.found, root, &client, &options, obeyed).await?;
        for warning in &resolved.warnings {
            note(&format!("warning: {warning}"));
        }
        for problem in &resolved.problems {
            note(&format!("error: {problem}"));
        }
        Ok(resolved)
    }
}
