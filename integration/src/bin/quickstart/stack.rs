//! All servers of the demonstration, under one directory.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use integration::cri::Cri;
use integration::demo;
use integration::node::{Node, NodeOptions};
use integration::peers::{ContainerdVersion, Peers};
use integration::servers::{Buildctl, Buildkitd, EmbeddedRegistry, Exporter};
use integration::{leftovers, oci_layout};

use crate::measure::Run;

/// Folders of the two nodes.
const NODES: [&str; 2] = ["lazy", "plain"];

/// The running servers. Fields are dropped in this order: users before what they use.
pub(crate) struct Stack {
    /// A node with our snapshotter.
    pub(crate) lazy: Node,
    /// A node with containerd's overlayfs snapshotter.
    pub(crate) plain: Node,
    exporter: Exporter,
    buildkitd: Buildkitd,
    /// The registry of everything here.
    pub(crate) registry: EmbeddedRegistry,
    /// The build context of the application.
    pub(crate) context: PathBuf,
    peers: Peers,
    dir: PathBuf,
}

impl Stack {
    /// Starts everything under `dir`, which must be empty or absent.
    pub(crate) fn start(peers: &Peers, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        eprintln!("starting the registry, buildkitd, the exporter and two nodes in {}", dir.display());
        let context = demo::three_layers(peers, &dir.join("context"))?;
        let registry = EmbeddedRegistry::start(&dir.join("registry"))?;
        let buildkitd = Buildkitd::start(peers, &dir.join("buildkit"))?;
        let store = buildkitd.content_store();
        let exporter = Exporter::start_with_store(&dir.join("exporter"), &buildkitd.address(), store)?;
        let pause = oci_layout::push(
            registry.address(),
            "pause",
            &peers.pause_rootfs()?,
            &["/bin/sleep", "infinity"],
            &dir.join("pause"),
        )?;
        let lazy = Node::ours(peers, &dir.join(NODES[0]), &pause, &NodeOptions::default())?;
        let plain = Node::overlayfs(peers, &dir.join(NODES[1]), &pause, ContainerdVersion::default())?;
        Ok(Self {
            lazy,
            plain,
            exporter,
            buildkitd,
            registry,
            context,
            peers: peers.clone(),
            dir: dir.to_owned(),
        })
    }

    /// buildctl through the exporter.
    pub(crate) fn buildctl(&self) -> Result<Buildctl> {
        Buildctl::new(&self.peers, self.exporter.address())
    }

    /// Writes the file that puts a shell into this environment, and says how to go on by hand.
    pub(crate) fn environment(&self, run: &Run) -> Result<String> {
        let file = self.dir.join("env");
        fs::write(&file, self.variables(run)?).with_context(|| format!("writing {}", file.display()))?;
        Ok(format!(
            "It keeps running. To use it:\n
  . {file}

  curl http://$APPLICATION/
  cri ps; cri exec app ls /srv/app
  ctr images ls; ctr snapshots ls
  buildctl build --frontend dockerfile.v0 --local context=$CONTEXT --local dockerfile=$CONTEXT \\
    --output type=nydus-cluster,name=$REGISTRY/again:v1
  cri pull $REGISTRY/again:v1

End it with: scripts/quickstart stop",
            file = file.display(),
        ))
    }

    /// Where everything is, as assignments of a shell.
    fn variables(&self, run: &Run) -> Result<String> {
        let programs = [
            env::current_exe()?,
            self.peers.buildkit("buildctl")?,
            self.peers.containerd(ContainerdVersion::V1_7, "ctr")?,
        ];
        let folders: Vec<_> = programs
            .iter()
            .filter_map(|path| path.parent())
            .map(|folder| folder.display().to_string())
            .collect();
        Ok(format!(
            "export PATH={path}:$PATH
export BUILDKIT_HOST={exporter}
export CONTAINERD_ADDRESS={containerd} CONTAINERD_NAMESPACE=k8s.io CONTAINERD_SNAPSHOTTER={snapshotter}
export APPLICATION={application} REGISTRY={registry} CONTEXT={context}
",
            path = folders.join(":"),
            exporter = self.exporter.address(),
            containerd = self.lazy.containerd().socket().display(),
            snapshotter = self.lazy.containerd().snapshotter(),
            application = run.application,
            registry = self.registry.address(),
            context = self.context.display(),
        ))
    }

    /// Leaves everything running.
    pub(crate) fn release(mut self) {
        self.lazy.release();
        self.plain.release();
        self.exporter.server().forget();
        self.buildkitd.server().forget();
        self.registry.server().forget();
    }
}

/// Ends everything that runs under `dir`, and removes it. Fine if nothing does.
pub(crate) fn stop(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for node in NODES {
        let socket = dir.join(node).join("c/containerd.sock");
        // Pods first: containerd knows all that belongs to them.
        if let Ok(cri) = Cri::connect(&socket)
            && let Err(error) = cri.remove_all_pods()
        {
            eprintln!("removing the pods of {}: {error:#}", socket.display());
        }
    }
    leftovers::clear(dir)?;
    remove_tree(dir)
}

/// Removes a directory tree in which nothing is mounted any more.
fn remove_tree(dir: &Path) -> Result<()> {
    let mounts = leftovers::mounts(dir)?;
    if let Some(mount) = mounts.first() {
        return Err(anyhow!("{} is still mounted", mount.display()));
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}
