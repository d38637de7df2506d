//! The cluster image of the demonstration: a real Kubernetes and services of Debian's packages, built by a real buildkitd.
//!
//! Container images and the cluster image are in one registry's storage below the cache, under `HOST/PATH` each: a registry that serves it
//! answers for all hosts, which nodes ask as a mirror. They are built once, and again when what they are made of changes. Each state of
//! our own program has a storage of its own: what it reads was built and saved by itself.

mod build;
mod outside;
mod own_runtime;
mod package;
mod second;
mod storage;
mod stored;

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use build::Workshop;
use nix::fcntl::{Flock, FlockArg};
pub use own_runtime::{OwnRuntime, WORD};
use storage::Storage;

use crate::peers::Peers;
use crate::servers::EmbeddedRegistry;

/// Container images, each with the stage of the Dockerfile that makes it.
const IMAGES: &[(&str, &str)] = &[
    ("pause", "registry.k8s.io/pause:3.10.2"),
    ("etcd", "registry.k8s.io/etcd:3.7.0-0"),
    ("kube-apiserver", "registry.k8s.io/kube-apiserver:v1.37.2"),
    ("kube-controller-manager", "registry.k8s.io/kube-controller-manager:v1.37.2"),
    ("kube-scheduler", "registry.k8s.io/kube-scheduler:v1.37.2"),
    ("kube-proxy", "registry.k8s.io/kube-proxy:v1.37.2"),
    ("coredns", "registry.k8s.io/coredns/coredns:v1.14.6"),
    ("host-routes", "registry.example/network/host-routes:1"),
    ("nginx", "registry.example/services/nginx:1.22"),
    ("redis", "registry.example/services/redis:7.0"),
    ("postgres", "registry.example/services/postgres:15"),
    ("report", "registry.example/services/report:1"),
    ("tomcat", "registry.example/services/tomcat:10.1"),
];
/// Services that are not in the small image.
const LEFT_OUT: [&str; 3] = ["postgres", "report", "tomcat"];

/// How many services the cluster image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Services {
    /// nginx and Redis.
    Two,
    /// PostgreSQL, a Python and a Java service too.
    Five,
}

impl Services {
    /// The cluster image.
    pub fn image(self) -> &'static str {
        match self {
            Self::Two => "registry.example/cluster/two-services:v1",
            Self::Five => "registry.example/cluster/five-services:v1",
        }
    }

    /// What its container images were saved under.
    pub fn saved(self) -> String {
        format!("{}-images", self.image())
    }

    /// The container images that it needs, each with its stage.
    pub fn images(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let all = IMAGES.iter().copied();
        all.filter(move |(stage, _)| self == Self::Five || !LEFT_OUT.contains(stage))
    }

    /// The ports on which services of it answer HTTP on every node.
    pub fn ports(self) -> &'static [u16] {
        match self {
            Self::Two => &[30080],
            Self::Five => &[30080, 30081, 30082],
        }
    }

    /// How many pods they are.
    pub fn pods(self) -> usize {
        match self {
            Self::Two => 4,
            Self::Five => 11,
        }
    }

    /// What the chart is given in addition to its own values.
    fn values(self) -> String {
        match self {
            Self::Two => LEFT_OUT.map(|service| format!("{service}: {{enabled: false}}\n")).concat(),
            Self::Five => "{}\n".to_owned(),
        }
    }
}

/// How nodes get the container images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pull {
    /// Lazily, as they were saved.
    Lazy,
    /// Whole, by containerd alone.
    Plain,
}

/// The storage of a registry that has a cluster image and all that it needs.
#[derive(Debug)]
pub struct ClusterImage {
    storage: Storage,
}

impl ClusterImage {
    /// Fails with what this host lacks to build it.
    pub fn require(peers: &Peers) -> Result<()> {
        build::inputs(peers).map(drop)
    }

    /// Builds it and saves its container images, unless that is there. Others that want it wait.
    pub fn make(peers: &Peers, services: Services) -> Result<Self> {
        let steps = Steps::begin(peers, services)?;
        steps.once("made", || build::all(peers, services, steps.workshop()))?;
        steps.once("saved", || build::save(services.image(), None, steps.storage.root()))?;
        Ok(steps.end())
    }

    /// [`Self::make`], and the cluster image as a plain one too.
    pub fn make_with_plain(peers: &Peers, services: Services) -> Result<Self> {
        Self::make(peers, services)?;
        let steps = Steps::begin(peers, services)?;
        steps.once("made-plain", || build::plain(peers, services, steps.workshop()))?;
        Ok(steps.end())
    }

    /// [`Self::make_with_plain`], and with it what it is held against too: a second version of all of it.
    pub fn make_with_peers(peers: &Peers, services: Services) -> Result<Self> {
        Self::make_with_plain(peers, services)?;
        let steps = Steps::begin(peers, services)?;
        steps.once("made-second", || build::second(peers, services, steps.workshop()))?;
        let first = services.saved();
        let second = services.second_image();
        steps.once("saved-second", || build::save(&second, Some(&first), steps.storage.root()))?;
        Ok(steps.end())
    }

    /// Serves it, with logs in `dir`.
    pub fn serve(&self, dir: &Path, address: IpAddr) -> Result<EmbeddedRegistry> {
        EmbeddedRegistry::serve(dir, self.storage.root(), address)
    }
}

/// `nydus-cluster cluster`, to be completed, with its configuration in `dir`, that finds the images of all hosts in `registry`.
pub fn command(registry: &EmbeddedRegistry, dir: &Path) -> Result<Command> {
    build::cluster(registry, dir)
}

/// What is made once of one state of the sources and peers, under a lock.
struct Steps {
    dir: PathBuf,
    storage: Storage,
    services: Services,
    stamp: String,
    _lock: Flock<File>,
}

impl Steps {
    fn begin(peers: &Peers, services: Services) -> Result<Self> {
        let dir = peers.cache().join("cluster");
        fs::create_dir_all(&dir)?;
        let lock = File::create(dir.join(".lock"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        let storage = Storage::open(&dir, &build::program_stamp()?)?;
        Ok(Self { dir, storage, services, stamp: build::stamp(peers, services)?, _lock: lock })
    }

    fn workshop(&self) -> Workshop<'_> {
        Workshop { dir: &self.dir, storage: self.storage.root() }
    }

    /// Does `work`, unless it was done in this state.
    fn once(&self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let made = self.storage.marker(&format!("{name}-{:?}", self.services));
        if fs::read_to_string(&made).is_ok_and(|found| found == self.stamp) {
            return Ok(());
        }
        work().with_context(|| format!("the cluster image cannot be {name}"))?;
        Ok(fs::write(&made, &self.stamp)?)
    }

    fn end(self) -> ClusterImage {
        ClusterImage { storage: self.storage }
    }
}
