//! The files of a cluster image: a directory, or an image, of which those that matter are fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use cluster::discover::{self, Archive};
use cluster::package::Package;
use image::destination::{DiskSpace, DiskUse, SpoolFolder};
use image::files::{self, LargeFiles};
use image::location::{InFile, Location};
use image::platform::PlatformName;
use registry::client::Client;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::config::Config;

/// What archives of images take that one command fetches.
const ARCHIVES: DiskUse = DiskUse {
    what: "archives of container images",
    setting: "cluster.save_spool_bytes",
    of: "one command",
    instead: "have the images in a registry",
};

/// A cluster image whose files can be read.
pub(super) struct Opened {
    /// The directory that they are in.
    pub(super) dir: PathBuf,
    /// The image's environment.
    pub(super) environment: BTreeMap<String, String>,
    /// Its labels.
    pub(super) labels: BTreeMap<String, String>,
    /// The annotations of its manifest.
    pub(super) annotations: BTreeMap<String, String>,
    /// What is run of it: its entry point, and its command.
    pub(super) command: [Vec<String>; 2],
    /// Whether it is a nydus image.
    pub(super) nydus: bool,
    /// The image that they are of; `None` for a directory of the user's.
    pub(super) location: Option<Location>,
    /// Goes with this, where the files were fetched.
    fetched: Option<Fetched>,
}

/// What was fetched of an image.
struct Fetched {
    platform: PlatformName,
    _files: TempDir,
    /// Archives of images, once they are needed, apart from the files: none of these leads there.
    archives: OnceCell<LargeFiles>,
}

impl Opened {
    /// Whether this is a directory of the user's.
    pub(super) fn is_directory(&self) -> bool {
        self.location.is_none()
    }

    /// Opens the directory, or else the package or image, that `source` names.
    pub(super) async fn open(
        config: &Config,
        source: &str,
        platform: Option<&PlatformName>,
    ) -> anyhow::Result<Self> {
        let path = Path::new(source);
        let location = match located(source)? {
            Some(location) => location,
            None => {
                return Ok(Self {
                    dir: path.to_owned(),
                    environment: BTreeMap::new(),
                    labels: BTreeMap::new(),
                    annotations: BTreeMap::new(),
                    command: [Vec::new(), Vec::new()],
                    nydus: false,
                    location: None,
                    fetched: None,
                });
            }
        };
        let client = Client::new(config.registry.clone())?;
        let directory = tempfile::tempdir().context("making a temporary directory")?;
        let platform = platform.cloned().unwrap_or_else(PlatformName::host);
        let configured = files::extract(&location, &client, &platform, discover::matters, directory.path())
            .await
            .with_context(|| format!("reading the files of {location}"))?;
        let pairs = configured.env.iter().flatten();
        let pairs = pairs.filter_map(|pair| pair.split_once('='));
        let environment = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let dir = directory.path().to_owned();
        let command = [configured.entrypoint, configured.cmd].map(Option::unwrap_or_default);
        let (labels, annotations) = (configured.labels.unwrap_or_default(), configured.annotations);
        Ok(Self {
            dir,
            environment,
            labels,
            annotations,
            command,
            nydus: configured.nydus,
            location: Some(location),
            fetched: Some(Fetched { platform, _files: directory, archives: OnceCell::new() }),
        })
    }

    /// The directory that has these archives of images: fetched now, if they are in an image.
    pub(super) async fn archives<'a>(
        &self,
        config: &Config,
        wanted: impl Iterator<Item = &'a Archive>,
    ) -> anyhow::Result<&Path> {
        let (Some(fetched), Some(location)) = (&self.fetched, &self.location) else { return Ok(&self.dir) };
        let spool = &config.registry.upload.spool_dir;
        let space = DiskSpace::new(spool, config.cluster.save_spool_bytes, &ARCHIVES);
        let make = || async {
            let dir = spool.clone();
            tokio::task::spawn_blocking(move || SpoolFolder::remove_abandoned(&dir)).await?;
            let made = LargeFiles::new(&space).await;
            made.with_context(|| format!("making a temporary directory in {}", spool.display()))
        };
        let mut wanted = wanted.peekable();
        if wanted.peek().is_none() {
            return Ok(&self.dir);
        }
        let archives = fetched.archives.get_or_try_init(make).await?;
        let dir = archives.path();
        let missing = wanted.filter(|archive| !dir.join(&archive.path).exists());
        let missing: BTreeSet<Vec<u8>> = missing.map(|archive| archive.path.clone().into_bytes()).collect();
        if !missing.is_empty() {
            let client = Client::new(config.registry.clone())?;
            archives
                .fetch(location, &client, &fetched.platform, missing)
                .await
                .with_context(|| format!("reading the archives of images in {location}"))?;
        }
        Ok(dir)
    }
}

/// Which image `source` names: what is at a path says itself whether it is a package. `None` for a root file system's directory.
pub(super) fn located(source: &str) -> anyhow::Result<Option<Location>> {
    let path = Path::new(source);
    if path.is_file() || Package::is_directory(path) {
        return Ok(Some(Location::Package(InFile { path: path.to_owned(), image: None })));
    }
    if path.is_dir() {
        return Ok(None);
    }
    if source.starts_with(['/', '.']) {
        bail!("{source}: no such file or directory");
    }
    Ok(Some(source.parse()?))
}
