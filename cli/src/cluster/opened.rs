//! The files of a cluster image: a directory, or an image, of which those that matter are fetched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use cluster::discover;
use image::files;
use image::location::Location;
use image::platform::PlatformName;
use registry::client::Client;
use tempfile::TempDir;

use crate::config::Config;

/// A cluster image whose files can be read.
pub(super) struct Opened {
    /// The directory that they are in.
    pub(super) dir: PathBuf,
    /// The image's environment.
    pub(super) environment: BTreeMap<String, String>,
    /// Goes with this, where the files were fetched.
    fetched: Option<TempDir>,
}

impl Opened {
    /// Whether this is a directory of the user's.
    pub(super) fn is_directory(&self) -> bool {
        self.fetched.is_none()
    }

    /// Opens the directory, or else the image, that `source` names.
    pub(super) async fn open(
        config: &Config,
        source: &str,
        platform: Option<&PlatformName>,
    ) -> anyhow::Result<Self> {
        let path = Path::new(source);
        if path.is_dir() {
            return Ok(Self { dir: path.to_owned(), environment: BTreeMap::new(), fetched: None });
        }
        if source.starts_with(['/', '.']) {
            bail!("{source}: no such directory");
        }
        let location: Location = source.parse()?;
        let client = Client::new(config.registry.clone())?;
        let directory = tempfile::tempdir().context("making a temporary directory")?;
        let platform = platform.cloned().unwrap_or_else(PlatformName::host);
        let configured = files::extract(&location, &client, &platform, discover::matters, directory.path())
            .await
            .with_context(|| format!("reading the files of {location}"))?;
        let pairs = configured.env.unwrap_or_default();
        let pairs = pairs.iter().filter_map(|pair| pair.split_once('='));
        let environment = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Self { dir: directory.path().to_owned(), environment, fetched: Some(directory) })
    }
}
