//! What is known of a cluster where it is run from: its nodes and how they are reached, in a directory of its own.
//!
//! The same directory has the nodes' ssh keys, the administrator's credentials, and what each node said (`NODE.log`).

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Run;
use super::error::LaunchError;
use super::place::{Place, SshOptions};

const FILE: &str = "cluster.json";

/// A cluster that was run from here.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Record {
    /// The cluster image.
    pub image: String,
    /// Nodes as they were named; empty: this machine.
    masters: Vec<String>,
    nodes: Vec<String>,
    user: Option<String>,
    key: Option<PathBuf>,
}

impl Record {
    pub(super) fn of(run: &Run) -> Self {
        let named = |places: &[Place]| {
            let named = |place: &Place| match place {
                Place::Here => None,
                Place::There { host, port: None } => Some(host.clone()),
                Place::There { host, port: Some(port) } => Some(format!("{host}:{port}")),
            };
            places.iter().filter_map(named).collect()
        };
        let image = match &run.prepare.image {
            super::task::Image::Mounted(reference) | super::task::Image::Converted(reference) => {
                reference.clone()
            }
            super::task::Image::Directory(directory) => directory.display().to_string(),
        };
        let (masters, nodes) = (named(&run.masters), named(&run.nodes));
        Self { image, masters, nodes, user: run.ssh.user.clone(), key: run.ssh.key.clone() }
    }

    /// Reads the record in `dir`.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn read(dir: &Path) -> Result<Self, LaunchError> {
        let file = dir.join(FILE);
        let text = match fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(LaunchError::wrong(
                    dir.display().to_string(),
                    "no cluster was run from here under this name",
                ));
            }
            text => text.map_err(LaunchError::io(&file))?,
        };
        serde_json::from_slice(&text)
            .map_err(|error| LaunchError::wrong(file.display().to_string(), error.to_string()))
    }

    /// Keeps it in `dir`, which only its owner may read.
    pub(super) fn keep(&self, dir: &Path) -> Result<(), LaunchError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(LaunchError::io(dir))?;
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other);
        write(&dir.join(FILE), &text.map_err(LaunchError::io(dir))?)
    }

    /// Its nodes, the masters first.
    pub(super) fn places(&self) -> Vec<Place> {
        let named: Vec<Place> =
            self.masters.iter().chain(&self.nodes).filter_map(|name| name.parse().ok()).collect();
        if self.masters.is_empty() { [Place::Here].into_iter().chain(named).collect() } else { named }
    }

    /// How many of them are masters.
    pub(super) fn masters(&self) -> usize {
        self.masters.len().max(1)
    }

    /// How its nodes are logged in to, where nothing else is said.
    pub(super) fn ssh(&self, said: &SshOptions) -> SshOptions {
        SshOptions {
            user: said.user.clone().or(self.user.clone()),
            key: said.key.clone().or(self.key.clone()),
            password: said.password.clone(),
        }
    }
}

/// Where the clusters that are run from here are kept, a directory each: `$XDG_STATE_HOME/nydus-cluster/clusters`, by default below
/// `~/.local/state`.
///
/// # Errors
///
/// When there is no home directory.
pub fn clusters_dir() -> Result<PathBuf, LaunchError> {
    let folder = |name: &str| env::var_os(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
    folder("XDG_STATE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("nydus-cluster/clusters"))
        .ok_or_else(|| {
            LaunchError::wrong("HOME", "expected a home directory, in which clusters are recorded")
        })
}

/// The administrator's credentials.
pub(super) fn kubeconfig(dir: &Path) -> PathBuf {
    dir.join("kubeconfig")
}

/// Writes a file that only its owner may read, so that it is never there half-written.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<(), LaunchError> {
    let temporary = path.with_extension("new");
    let written = (|| {
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    written.map_err(LaunchError::io(path))
}
