//! What this node has of a cluster, and how far it has come, in a file.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::commands::progress;
use super::own_registry::OwnRegistry;
use super::{clear, image, lazy, ledger, member};
use crate::launch::error::LaunchError;
use crate::launch::task::{Image, Images, Mirror, Prepare};

/// What this node has of a cluster, and how far it has come.
#[derive(Debug)]
pub(super) struct State {
    pub(super) dir: PathBuf,
    pub(super) saved: SavedState,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct SavedState {
    pub(super) prepare: Prepare,
    pub(super) own_containerd: bool,
    pub(super) hooks_done: Vec<String>,
    /// Its part in the cluster: absent before it begins to join, empty while it does.
    pub(super) role: Option<String>,
    /// How many of the image's commands were run here.
    pub(super) launched: usize,
    /// The port on which the node answers for container images that it reads lazily; absent where it reads none.
    #[serde(default)]
    pub(super) port: Option<u16>,
    /// Whether the node's daemon mounts the image, and no process of its own.
    #[serde(default)]
    pub(super) by_daemon: bool,
    /// Whether a containerd that the node has from elsewhere runs with what it was told.
    #[serde(default)]
    pub(super) containerd_told: bool,
    /// What networks had written for the node's containerd before there was a cluster; absent where nobody looked.
    #[serde(default)]
    pub(super) networks: Option<BTreeSet<String>>,
    /// Whether the node had a containerd before there was a cluster; absent where nobody looked.
    #[serde(default)]
    pub(super) had_containerd: Option<bool>,
    /// Whether the image's own hooks bring the node's containerd, which had none.
    #[serde(default)]
    pub(super) containerd_by_hooks: bool,
    /// What the registry answers for that the image has in its tree; absent if it has none.
    #[serde(default)]
    pub(super) registry: Option<OwnRegistry>,
}

impl State {
    pub(super) fn new(dir: &Path, prepare: &Prepare) -> Result<Self, LaunchError> {
        let saved = SavedState {
            prepare: prepare.clone(),
            own_containerd: false,
            hooks_done: Vec::new(),
            role: None,
            launched: 0,
            port: None,
            by_daemon: false,
            containerd_told: false,
            networks: Some(clear::pod_networks()?),
            had_containerd: None,
            containerd_by_hooks: false,
            registry: None,
        };
        Ok(Self { dir: dir.to_owned(), saved })
    }

    pub(super) fn file(dir: &Path) -> PathBuf {
        dir.join("state.json")
    }

    pub(super) fn read(dir: &Path) -> Result<Option<Self>, LaunchError> {
        let file = Self::file(dir);
        let text = match fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(LaunchError::io(&file))?,
        };
        let saved = serde_json::from_slice(&text)
            .map_err(|error| LaunchError::wrong(file.display().to_string(), error.to_string()))?;
        Ok(Some(Self { dir: dir.to_owned(), saved }))
    }

    pub(super) fn save(&self) -> Result<(), LaunchError> {
        let file = Self::file(&self.dir);
        let text = serde_json::to_vec_pretty(&self.saved).map_err(io::Error::other);
        let text = text.map_err(LaunchError::io(&file))?;
        if fs::read(&file).is_ok_and(|found| found == text) {
            return Ok(());
        }
        ledger::write(&file, &text, 0o600)
    }

    /// The image's tree.
    pub(super) fn tree(&self) -> PathBuf {
        match &self.saved.prepare.image {
            Image::Mounted(_) | Image::Converted(_) => image::tree(&self.dir),
            Image::Directory(tree) => tree.clone(),
        }
    }

    /// What units need whose programs or files are in the tree, if it is mounted.
    pub(super) fn needed(&self) -> Option<String> {
        let is_mounted = !matches!(self.saved.prepare.image, Image::Directory(_));
        is_mounted.then(|| image::needed(&self.dir))
    }

    /// The container images that the node reads lazily: those that it is told of, if it `can`, or else those of the image's own registry, if it
    /// has a containerd that `unpacks` with our snapshotter.
    pub(super) fn lazily(&self, can: bool, unpacks: bool) -> Option<&Images> {
        let Prepare { images, plain, .. } = &self.saved.prepare;
        let own = || self.saved.registry.as_ref().filter(|_| unpacks && !plain)?.images.as_ref();
        if images.is_some() { images.as_ref().filter(|_| can) } else { own() }
    }

    /// Those of our services that run for what is read lazily, in the order in which they start.
    pub(super) fn lazy_services(&self) -> impl DoubleEndedIterator<Item = &'static str> {
        let lazily = self.saved.port.is_some();
        let mounting = lazy::MOUNTING.into_iter().filter(move |_| lazily || self.saved.by_daemon);
        mounting.chain([lazy::SERVE].into_iter().filter(move |_| lazily))
    }

    /// Whether it reads those of the image's own registry.
    pub(super) fn reads_own_registry(&self) -> bool {
        self.saved.port.is_some() && self.saved.prepare.images.is_none()
    }

    /// Where hosts of images are answered, those that come first before others: here for `images`, then in the image's own registry, then
    /// elsewhere.
    pub(super) fn mirrors(&self, images: Option<&Images>) -> Vec<Mirror> {
        let here =
            images.zip(self.saved.port).into_iter().flat_map(|(images, port)| lazy::mirrors(images, port));
        let own = self.saved.registry.iter().flat_map(OwnRegistry::mirrors);
        here.chain(own).chain(self.saved.prepare.mirrors.iter().cloned()).collect()
    }

    /// `master` or `node`; empty if it has not joined.
    pub(super) fn role(&self) -> &str {
        self.saved.role.as_deref().unwrap_or_default()
    }

    /// From now on there may be parts of a cluster here. What an interrupted step left goes first.
    pub(super) fn began(&mut self) -> Result<(), LaunchError> {
        if self.saved.role.is_some() {
            progress("an earlier run did not come to its end: beginning again");
            member::leave(self)?;
        }
        self.saved.role = Some(String::new());
        self.save()
    }

    pub(super) fn joined(&mut self, role: &str) -> Result<(), LaunchError> {
        self.saved.role = Some(role.to_owned());
        self.save()
    }

    /// There is nothing of a cluster here any more.
    pub(super) fn left(&mut self) -> Result<(), LaunchError> {
        self.saved.role = None;
        self.saved.launched = 0;
        self.saved.hooks_done.clear();
        self.save()
    }

    pub(super) fn launched(&self) -> usize {
        self.saved.launched
    }

    pub(super) fn has_launched(&mut self, commands: usize) -> Result<(), LaunchError> {
        self.saved.launched = commands;
        self.save()
    }

    /// A shell's command in the image's tree, with the image's environment.
    pub(super) fn shell(&self, command: &str) -> Command {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-ec", command]).current_dir(self.tree()).envs(&self.saved.prepare.environment);
        // The node's own, with the image's programs behind it.
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        shell.env("PATH", format!("{path}:{}/bin", self.tree().display()));
        shell.env("CLUSTER_NAME", &self.saved.prepare.cluster).env("CLUSTER_ROOT", self.tree());
        shell
    }
}
