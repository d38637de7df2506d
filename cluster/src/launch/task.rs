//! What a node is told to do, and what it says: the words between `cluster run` and itself on the node.
//!
//! A task comes as one line of JSON on standard input, which then stays open: its end means that whoever waits has gone, and
//! ends the task. What is done is said on standard error as it happens, what came of it is one line of JSON on standard output.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use registry::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Something to do on a node.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Task {
    /// Say where this node can serve the package that was brought to it.
    Site,
    /// Bring the image, and install what is in it.
    Prepare(Prepare),
    /// Make this node the first of the cluster.
    Init(Init),
    /// Let this node join.
    Join(Join),
    /// Run what launches the image.
    Launch(Launch),
    /// Say what runs.
    Status,
    /// Leave the cluster and take everything away again.
    Remove {
        /// Leave the cluster alone: what was brought and installed stays for the next one, container images too.
        keep: bool,
    },
}

/// What every node gets.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Prepare {
    /// The cluster's name.
    pub cluster: String,
    /// The cluster image.
    pub image: Image,
    /// Where the hosts of images are answered.
    pub mirrors: Vec<Mirror>,
    /// The package that this node serves to all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<ServedPackage>,
    /// Where a package is served, as HOST:PORT: one of them has to answer before the image is brought.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub serving: Vec<String>,
    /// The container images that the node is to read lazily; it pulls all of them whole if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Images>,
    /// All of them are pulled whole, also those that the cluster image itself has as RAFS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain: bool,
    /// A containerd that the node has from elsewhere is left as it is, and pulls all of them whole.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_containerd: bool,
    /// Whether this is the first node, which has the registry of an image that brings its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub first: bool,
    /// Commands that are run in the image's tree: `check` before any of it is installed, `init` afterwards, `clean` at the end.
    pub hooks: BTreeMap<String, String>,
    /// The image's environment.
    pub environment: BTreeMap<String, String>,
    /// Files of the image's tree that were templates, by their paths in it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rendered: BTreeMap<String, String>,
}

#[cfg(test)]
impl Prepare {
    /// What a node gets of a cluster of which nothing else is said.
    pub(super) fn named(cluster: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            image: Image::Mounted("r.example/c@sha256:0".to_owned()),
            mirrors: Vec::new(),
            package: None,
            serving: Vec::new(),
            images: None,
            plain: false,
            keep_containerd: false,
            first: false,
            hooks: BTreeMap::new(),
            environment: BTreeMap::new(),
            rendered: BTreeMap::new(),
        }
    }
}

/// Where a node finds the cluster image.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Image {
    /// A nydus image in a registry, which is mounted.
    Mounted(String),
    /// A plain image in a registry, which is converted on the node, and then mounted.
    Converted(String),
    /// A directory of the node's.
    Directory(PathBuf),
}

/// A package on a node.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ServedPackage {
    /// The file.
    pub file: PathBuf,
    /// Where it is served.
    pub listen: SocketAddr,
}

/// Where a node can serve something.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Site {
    /// The address that it has towards other networks; absent if it has none.
    pub address: Option<IpAddr>,
    /// A port that is free.
    pub port: u16,
}

/// Saved container images.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// The repository that they were saved to.
    pub repository: String,
    /// The digest of what names all of them there.
    pub digest: Digest,
    /// The registries that they are of, and with which part names of their repositories begin where the node answers for them.
    pub hosts: BTreeMap<String, String>,
    /// Whether nobody has them as they are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_lazily: bool,
}

/// A host whose images somebody else answers.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Mirror {
    /// The host, as names of images begin with it.
    pub host: String,
    /// The place of the distribution API for it.
    pub url: String,
}

/// How the first node begins.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Init {
    /// The address on which the others reach it; kubeadm chooses if absent.
    pub address: Option<String>,
    /// Where all nodes find the control plane, as `HOST[:PORT]`: needed where others may join it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Whether others are to join: each time they get a token of their own for it, which is a secret of the cluster's for a day.
    pub joins: bool,
}

/// What a node says that was prepared.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Prepared {
    /// How many things on it are other than before.
    pub changed: usize,
    /// Whether it is a member of the cluster already.
    pub joined: bool,
}

/// What the first node says when it is up.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Begun {
    /// The credentials of the cluster's administrator.
    pub kubeconfig: String,
    /// What other nodes join with.
    pub join: Join,
    /// What those need too that join the control plane: keys and certificates, by their names below `/etc/kubernetes/pki`.
    #[serde(default)]
    pub authorities: BTreeMap<String, String>,
}

/// What a node joins with.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Join {
    /// Where the cluster is and which authority it has: a kubeconfig without credentials.
    pub discovery: Value,
    /// A token for a day; empty if nobody is to join.
    pub token: String,
    /// For a node that joins the control plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<ControlPlane>,
    /// For a cluster that the image makes by its own hooks; then discovery and token are of no use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_hooks: Option<ByHooks>,
}

/// What the image's own hooks join with.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ByHooks {
    /// What the first node's hook left for others.
    pub words: String,
    /// The address on which others reach this node, if it is named by one.
    pub address: Option<String>,
    /// Where all nodes find the control plane, as `HOST[:PORT]`.
    pub endpoint: Option<String>,
}

/// What a node joins the control plane with.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ControlPlane {
    /// The address on which others reach it; kubeadm chooses if absent.
    pub address: Option<String>,
    /// See [`Begun::authorities`].
    pub authorities: BTreeMap<String, String>,
}

/// What launches the image.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Launch {
    /// Commands of a shell, one after the other.
    pub commands: Vec<String>,
    /// How long each may take, in seconds.
    pub seconds: u64,
}

/// How a node is.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct Status {
    /// The cluster that it belongs to; empty if to none.
    pub cluster: String,
    /// Its part in it: `master`, `node`, or empty if it has not joined.
    pub role: String,
    /// The services and what systemd says of them.
    pub services: BTreeMap<String, String>,
}
