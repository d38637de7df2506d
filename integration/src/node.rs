//! A node as Kubernetes knows it, without the kubelet: containerd with one of the snapshotters, spoken to by CRI.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::unistd::Pid;

use crate::cri::{Cri, Pod};
use crate::peers::{ContainerdVersion, Peers};
use crate::servers::{
    Containerd, ContainerdOptions, CriSnapshotter, Snapshotter, UpstreamMode, UpstreamSnapshotter,
};
use crate::{leftovers, process, wait};

/// containerd asks a snapshotter that was away after three seconds at the latest; a busy machine takes longer.
const FOUND_DEADLINE: Duration = Duration::from_secs(60);

/// Where a node's snapshots come from.
#[derive(Debug)]
enum Snapshots {
    Ours(Snapshotter),
    Upstream(UpstreamSnapshotter),
    /// One of containerd's own.
    Containerds(CriSnapshotter),
}

/// How a node is to be.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// Which containerd.
    pub containerd: ContainerdVersion,
    /// Lines of our configuration's section `[snapshotter]`, beyond the harness's own.
    pub snapshotter: String,
    /// Lines of our configuration's section `[registry]`, beyond the harness's own.
    pub registry: String,
    /// Further sections of our configuration.
    pub config: String,
    /// Whether containerd keeps from our snapshotter which image a layer is of.
    pub without_annotations: bool,
    /// The program that is our snapshotter and daemon, if not the one that was built.
    pub program: Option<PathBuf>,
    /// What containerd is told that our snapshotter is capable of.
    pub capabilities: Vec<&'static str>,
    /// Bytes of a disk that our cache has to itself, if it is to have one.
    pub cache_disk: Option<u64>,
}

/// A running node. Dropping it removes its pods and stops its servers, containerd before the snapshotter.
#[derive(Debug)]
pub struct Node {
    cri: Cri,
    logs: PathBuf,
    snapshotter_dir: PathBuf,
    containerd: Containerd,
    snapshots: Snapshots,
    released: bool,
}

impl Node {
    /// A node with our snapshotter.
    pub fn ours(peers: &Peers, dir: &Path, sandbox_image: &str, options: &NodeOptions) -> Result<Self> {
        // Before it is there: our snapshotter asks it which image is meant where no label says it.
        let socket = containerd_dir(dir).join("containerd.sock");
        let NodeOptions { snapshotter, registry, config, .. } = options;
        let config = format!(
            "[registry]\ncerts_dir = \"{}\"\n{registry}\n[snapshotter]\ncontainerd = \"{}\"\n{snapshotter}\n{config}",
            containerd_dir(dir).join("certs.d").display(),
            socket.display(),
        );
        if let Some(bytes) = options.cache_disk {
            let cache = snapshotter_dir(dir).join(CACHE);
            fs::create_dir_all(&cache)?;
            let size = format!("size={bytes}");
            mount(Some("tmpfs"), &cache, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))?;
        }
        let snapshotter = match &options.program {
            Some(program) => Snapshotter::start_program(program, &snapshotter_dir(dir), &config)?,
            None => Snapshotter::start(&snapshotter_dir(dir), &config)?,
        };
        Self::start(peers, dir, sandbox_image, Snapshots::Ours(snapshotter), options)
    }

    /// A node with upstream's nydus-snapshotter and nydusd.
    pub fn upstream(peers: &Peers, dir: &Path, sandbox_image: &str, mode: UpstreamMode) -> Result<Self> {
        let snapshotter = UpstreamSnapshotter::start(peers, &snapshotter_dir(dir), mode)?;
        Self::start(peers, dir, sandbox_image, Snapshots::Upstream(snapshotter), &NodeOptions::default())
    }

    /// A node with that containerd's own overlayfs snapshotter.
    pub fn overlayfs(
        peers: &Peers,
        dir: &Path,
        sandbox_image: &str,
        containerd: ContainerdVersion,
    ) -> Result<Self> {
        Self::with_containerds(peers, dir, sandbox_image, containerd, CriSnapshotter::Overlayfs)
    }

    /// A node with one of that containerd's own snapshotters.
    pub fn with_containerds(
        peers: &Peers,
        dir: &Path,
        sandbox_image: &str,
        containerd: ContainerdVersion,
        snapshotter: CriSnapshotter,
    ) -> Result<Self> {
        let options = NodeOptions { containerd, ..NodeOptions::default() };
        Self::start(peers, dir, sandbox_image, Snapshots::Containerds(snapshotter), &options)
    }

    fn start(
        peers: &Peers,
        dir: &Path,
        sandbox_image: &str,
        snapshots: Snapshots,
        options: &NodeOptions,
    ) -> Result<Self> {
        let snapshotter = match &snapshots {
            Snapshots::Ours(snapshotter) => CriSnapshotter::Proxy(snapshotter.as_proxy()),
            Snapshots::Upstream(snapshotter) => CriSnapshotter::Proxy(snapshotter.as_proxy()),
            Snapshots::Containerds(own) => own.clone(),
        };
        let containerd = ContainerdOptions {
            version: options.containerd,
            sandbox_image: sandbox_image.to_owned(),
            snapshotter,
            annotations: !options.without_annotations,
            capabilities: options.capabilities.clone(),
        };
        let containerd = Containerd::start(peers, &containerd_dir(dir), &containerd)?;
        let cri = containerd.cri()?;
        let (logs, snapshotter_dir) = (dir.join("logs"), snapshotter_dir(dir));
        Ok(Self { cri, logs, snapshotter_dir, containerd, snapshots, released: false })
    }

    /// What the kubelet would ask of it.
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// Its containerd.
    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// Our snapshotter; an error on another node.
    pub fn snapshotter(&mut self) -> Result<&mut Snapshotter> {
        match &mut self.snapshots {
            Snapshots::Ours(snapshotter) => Ok(snapshotter),
            other => Err(anyhow!("this node runs {other:?}")),
        }
    }

    /// Starts our snapshotter again, and waits until containerd, which asks one that was away again after seconds alone, has found it.
    pub fn restart_snapshotter(&mut self) -> Result<()> {
        self.snapshotter()?.restart()?;
        let mut list = self.containerd.ctr();
        list.args(["snapshots", "--snapshotter", self.containerd.snapshotter(), "ls"]);
        wait::until_true("containerd finds the snapshotter again", FOUND_DEADLINE, || {
            process::run(&mut list).is_ok()
        })
    }

    /// Where our daemon has its cache.
    pub fn cache(&self) -> PathBuf {
        self.snapshotter_dir.join(CACHE)
    }

    /// Gives the disk that our cache has to itself another size, in bytes.
    pub fn resize_cache_disk(&self, bytes: u64) -> Result<()> {
        let (size, none) = (format!("size={bytes}"), None::<&str>);
        let resized = mount(none, &self.cache(), none, MsFlags::MS_REMOUNT, Some(size.as_str()));
        resized.context("changing the size of the cache's disk")
    }

    /// What our daemon has written so far; empty on another node.
    pub fn daemon_log(&self) -> String {
        match &self.snapshots {
            Snapshots::Ours(snapshotter) => snapshotter.daemon_log(),
            _ => String::new(),
        }
    }

    /// Memory of snapshotter, daemons and their children, in bytes: each page by how many processes share it.
    pub fn snapshotter_memory(&self) -> Result<Vec<(Pid, u64)>> {
        let own: Vec<_> =
            leftovers::processes(&self.snapshotter_dir)?.iter().map(|process| process.pid).collect();
        let memory = |pid| process::proportional_memory_bytes(pid).map(|bytes| (pid, bytes));
        let memory: io::Result<_> = process::families(&own)?.into_iter().map(memory).collect();
        memory.context("memory of the snapshotter's processes")
    }

    /// Runs a pod; `name` also names the folder of its containers' logs.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.cri.run_pod(name, &self.logs.join(name))
    }

    /// Mounts the image's tree at `target`, as a container would see it.
    pub fn mount(&self, image: &str, target: &Path) -> Result<MountedImage<'_>> {
        fs::create_dir_all(target)?;
        let snapshotter = self.containerd.snapshotter();
        process::run(
            self.containerd.ctr().args(["images", "mount", "--snapshotter", snapshotter, image]).arg(target),
        )?;
        Ok(MountedImage { node: self, target: target.to_owned() })
    }

    /// Leaves everything running beyond this guard.
    pub fn release(mut self) {
        self.released = true;
        self.containerd.server().forget();
        match &mut self.snapshots {
            Snapshots::Ours(snapshotter) => snapshotter.forget(),
            Snapshots::Upstream(snapshotter) => snapshotter.server().forget(),
            Snapshots::Containerds(_) => {}
        }
    }
}

/// Where the daemon has its cache, in the snapshotter's directory.
const CACHE: &str = "root/cache";

/// Where a node's snapshotter and its daemons have their files.
fn snapshotter_dir(dir: &Path) -> PathBuf {
    dir.join("s")
}

/// Where a node's containerd has its files.
fn containerd_dir(dir: &Path) -> PathBuf {
    dir.join("c")
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        if let Err(error) = self.cri.remove_all_pods() {
            process::tell(format_args!("removing pods: {error:#}"));
        }
    }
}

/// A mounted image tree; dropping it unmounts.
#[derive(Debug)]
pub struct MountedImage<'a> {
    node: &'a Node,
    target: PathBuf,
}

impl Drop for MountedImage<'_> {
    fn drop(&mut self) {
        let containerd = &self.node.containerd;
        let mut command = containerd.ctr();
        command
            .args(["images", "unmount", "--rm", "--snapshotter", containerd.snapshotter()])
            .arg(&self.target);
        if let Err(error) = process::run(&mut command) {
            process::tell(format_args!("unmounting {}: {error:#}", self.target.display()));
        }
    }
}
