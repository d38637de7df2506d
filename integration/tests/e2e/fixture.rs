//! What the tests share: servers, images built once, and nodes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::{env, fs};

use anyhow::{Context, Result, anyhow};
use integration::node::{Node, NodeOptions};
use integration::peers::{self, BuildkitVersion, ContainerdVersion, Peers};
use integration::process;
use integration::servers::{Buildctl, Buildkitd, EmbeddedRegistry, Exporter};
use integration::suite::Lazy;
use integration::{demo, oci_layout};
use serde_json::Value;
use tempfile::TempDir;

use crate::same_tree::Exported;

/// An image in the embedded registry, and the context it was built from.
pub(crate) struct Built {
    /// Its name.
    pub(crate) name: String,
    /// The build context.
    pub(crate) context: PathBuf,
    /// Its manifest.
    pub(crate) manifest: Value,
}

/// What the tests share, seen by those that run on one version of containerd.
#[derive(Clone)]
pub(crate) struct Fixture {
    shared: Arc<Shared>,
    containerd: ContainerdVersion,
}

/// Fields are dropped in this order: users before what they use.
struct Shared {
    nodes: [Lazy<Node>; 2],
    demo_exported: Lazy<Exported>,
    demo: Lazy<Built>,
    exporter: Lazy<Exporter>,
    buildkitd: Lazy<Buildkitd>,
    pause: Lazy<String>,
    registry: Lazy<EmbeddedRegistry>,
    missing: Option<String>,
    peers: Peers,
    dir: TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Result<Self> {
        let peers = Peers::of_user()?;
        // Sockets are under it, and their paths may have 107 bytes.
        let dir = tempfile::Builder::new().prefix("nydus-cluster-e2e-").tempdir()?;
        let shared = Shared {
            nodes: [Lazy::new(), Lazy::new()],
            demo_exported: Lazy::new(),
            demo: Lazy::new(),
            exporter: Lazy::new(),
            buildkitd: Lazy::new(),
            pause: Lazy::new(),
            registry: Lazy::new(),
            missing: missing(&peers).err().map(|error| format!("{error:#}")),
            peers,
            dir,
        };
        Ok(Self { shared: Arc::new(shared), containerd: ContainerdVersion::default() })
    }

    /// The same for tests on another containerd.
    pub(crate) fn on(&self, containerd: ContainerdVersion) -> Self {
        Self { containerd, ..self.clone() }
    }

    /// What the machine lacks for these tests.
    pub(crate) fn missing(&self) -> Option<&str> {
        self.shared.missing.as_deref()
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.shared.peers
    }

    /// Which containerd its nodes have.
    pub(crate) fn containerd(&self) -> ContainerdVersion {
        self.containerd
    }

    /// Whether BuildKit is the oldest one, which takes one output a build.
    pub(crate) fn has_oldest_buildkit(&self) -> bool {
        self.peers().buildkit_version() == BuildkitVersion::Oldest
    }

    /// A fresh directory for one test.
    pub(crate) fn subdir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(path)
    }

    pub(crate) fn registry(&self) -> Result<&EmbeddedRegistry> {
        self.shared.registry.get(|| EmbeddedRegistry::start(&self.shared.dir.path().join("registry")))
    }

    pub(crate) fn buildkitd(&self) -> Result<&Buildkitd> {
        self.shared
            .buildkitd
            .get(|| Buildkitd::start(&self.shared.peers, &self.shared.dir.path().join("buildkit")))
    }

    pub(crate) fn exporter(&self) -> Result<&Exporter> {
        self.shared
            .exporter
            .get(|| Exporter::start(&self.shared.dir.path().join("exporter"), &self.buildkitd()?.address()))
    }

    /// buildctl through the exporter.
    pub(crate) fn buildctl(&self) -> Result<Buildctl> {
        Buildctl::new(&self.shared.peers, self.exporter()?.address())
    }

    /// buildctl straight to buildkitd.
    pub(crate) fn plain_buildctl(&self) -> Result<Buildctl> {
        Buildctl::new(&self.shared.peers, self.buildkitd()?.address())
    }

    /// The sandbox image, in the embedded registry.
    pub(crate) fn pause(&self) -> Result<&str> {
        let name = self.shared.pause.get(|| {
            oci_layout::push(
                self.registry()?.address(),
                "pause",
                &self.shared.peers.pause_rootfs()?,
                &["/bin/sleep", "infinity"],
                &self.shared.dir.path().join("pause"),
            )
        })?;
        Ok(name)
    }

    /// The three-layer demonstration image.
    pub(crate) fn demo(&self) -> Result<&Built> {
        self.shared.demo.get(|| {
            let context = demo::three_layers(&self.shared.peers, &self.shared.dir.path().join("demo"))?;
            self.build(&context, "demo:v1")
        })
    }

    /// What BuildKit's own exports of the demonstration show.
    pub(crate) fn demo_exported(&self) -> Result<&Exported> {
        self.shared.demo_exported.get(|| Exported::of(self, self.demo()?, "demo-exported"))
    }

    /// Builds a context through the exporter into the embedded registry.
    pub(crate) fn build(&self, context: &Path, tag: &str) -> Result<Built> {
        let name = format!("{}/{tag}", self.registry()?.address());
        self.buildctl()?.build(context, &[&format!("type=nydus-cluster,name={name}")])?;
        let manifest = manifest(&name)?;
        Ok(Built { name, context: context.to_owned(), manifest })
    }

    /// A shared node: our snapshotter and containerd.
    pub(crate) fn node(&self) -> Result<&Node> {
        let [first, second] = &self.shared.nodes;
        let node = match self.containerd {
            ContainerdVersion::V1_7 => first,
            ContainerdVersion::V2_2 | ContainerdVersion::V2_4 => second,
        };
        node.get(|| self.new_node("node", ""))
    }

    /// A node of a test's own; `config` is TOML for our daemon.
    pub(crate) fn new_node(&self, name: &str, config: &str) -> Result<Node> {
        self.new_node_with(name, NodeOptions { config: config.to_owned(), ..NodeOptions::default() })
    }

    /// A node of a test's own, with the containerd of this fixture.
    pub(crate) fn new_node_with(&self, name: &str, options: NodeOptions) -> Result<Node> {
        let options = NodeOptions { containerd: self.containerd, ..options };
        Node::ours(&self.shared.peers, &self.path(name), self.pause()?, &options)
    }

    /// Where a test has its files: each version's apart.
    fn path(&self, name: &str) -> PathBuf {
        self.shared.dir.path().join(format!("{name}-{}", self.containerd))
    }

    /// Ends of the logs of all shared servers, for a failed test.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        let shared =
            ["registry/registry.log", "exporter/exporter.log"].map(|log| self.shared.dir.path().join(log));
        let node =
            ["s/snapshotter.log", "s/daemon.log", "c/containerd.log"].map(|log| self.path("node").join(log));
        for path in shared.iter().chain(&node).filter(|path| path.exists()) {
            text += &format!("--- end of {} ---\n{}\n", path.display(), process::tail(path));
        }
        text
    }
}

fn missing(peers: &Peers) -> Result<()> {
    peers.require_common()?;
    for program in ["buildkitd", "buildctl"] {
        peers.buildkit(program)?;
    }
    for version in [ContainerdVersion::V1_7, ContainerdVersion::of_series_2()?] {
        for program in ["containerd", "containerd-shim-runc-v2", "ctr"] {
            peers.containerd(version, program)?;
        }
    }
    peers.snapshots_suite()?;
    peers.critest()?;
    for program in ["runc", "docker-registry", "skopeo"] {
        peers::system(program)?;
    }
    peers.oci_conformance()?;
    peers.pause_rootfs()?;
    Ok(())
}

/// How often a test does something: as often as the variable says, else so often.
pub(crate) fn count_of(variable: &'static str, otherwise: usize) -> Result<usize> {
    match env::var(variable) {
        Ok(count) => count.parse().context(variable),
        Err(_) => Ok(otherwise),
    }
}

/// The manifest of an image in a plain-HTTP registry, as skopeo reads it.
pub(crate) fn manifest(name: &str) -> Result<Value> {
    let output = process::run(
        Command::new(peers::system("skopeo")?)
            .args(["inspect", "--raw", "--tls-verify=false"])
            .arg(format!("docker://{name}")),
    )?;
    Ok(serde_json::from_str(&output.stdout)?)
}

/// Digests of a nydus manifest's layers: the blobs, and the bootstrap.
pub(crate) fn nydus_layers(manifest: &Value) -> Result<(Vec<String>, String)> {
    let layers =
        manifest["layers"].as_array().ok_or_else(|| anyhow!("a manifest without layers: {manifest}"))?;
    let digest = |layer: &Value| layer["digest"].as_str().unwrap_or_default().to_owned();
    let has =
        |layer: &Value, key: &str| layer["annotations"][format!("containerd.io/snapshot/{key}")] == "true";
    let blobs = layers.iter().filter(|layer| has(layer, "nydus-blob")).map(digest).collect();
    let bootstrap = layers.last().filter(|layer| has(layer, "nydus-bootstrap")).map(digest);
    Ok((blobs, bootstrap.ok_or_else(|| anyhow!("the last layer is not a nydus bootstrap: {manifest}"))?))
}

/// The address in an image's name replaced by another's, such as a proxy's before the same registry.
pub(crate) fn through(name: &str, address: SocketAddr) -> String {
    let rest = name.split_once('/').map_or(name, |(_, rest)| rest);
    format!("{address}/{rest}")
}
