//! What the tests share: servers, images built once, and nodes.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use integration::node::Node;
use integration::peers::{self, Peers};
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

/// Fields are dropped in this order: users before what they use.
pub(crate) struct Fixture {
    node: Lazy<Node>,
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
        Ok(Self {
            node: Lazy::new(),
            demo_exported: Lazy::new(),
            demo: Lazy::new(),
            exporter: Lazy::new(),
            buildkitd: Lazy::new(),
            pause: Lazy::new(),
            registry: Lazy::new(),
            missing: missing(&peers).err().map(|error| format!("{error:#}")),
            peers,
            dir,
        })
    }

    /// What the machine lacks for these tests.
    pub(crate) fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.peers
    }

    /// A fresh directory for one test.
    pub(crate) fn subdir(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(path)
    }

    pub(crate) fn registry(&self) -> Result<&EmbeddedRegistry> {
        self.registry.get(|| EmbeddedRegistry::start(&self.dir.path().join("registry")))
    }

    pub(crate) fn buildkitd(&self) -> Result<&Buildkitd> {
        self.buildkitd.get(|| Buildkitd::start(&self.peers, &self.dir.path().join("buildkit")))
    }

    pub(crate) fn exporter(&self) -> Result<&Exporter> {
        self.exporter.get(|| Exporter::start(&self.dir.path().join("exporter"), &self.buildkitd()?.address()))
    }

    /// buildctl through the exporter.
    pub(crate) fn buildctl(&self) -> Result<Buildctl> {
        Buildctl::new(&self.peers, self.exporter()?.address())
    }

    /// buildctl straight to buildkitd.
    pub(crate) fn plain_buildctl(&self) -> Result<Buildctl> {
        Buildctl::new(&self.peers, self.buildkitd()?.address())
    }

    /// The sandbox image, in the embedded registry.
    pub(crate) fn pause(&self) -> Result<&str> {
        let name = self.pause.get(|| {
            oci_layout::push(
                self.registry()?.address(),
                "pause",
                &self.peers.pause_rootfs()?,
                &["/bin/sleep", "infinity"],
                &self.dir.path().join("pause"),
            )
        })?;
        Ok(name)
    }

    /// The three-layer demonstration image.
    pub(crate) fn demo(&self) -> Result<&Built> {
        self.demo.get(|| {
            let context = demo::three_layers(&self.peers, &self.dir.path().join("demo"))?;
            self.build(&context, "demo:v1")
        })
    }

    /// What BuildKit's own exports of the demonstration show.
    pub(crate) fn demo_exported(&self) -> Result<&Exported> {
        self.demo_exported.get(|| Exported::of(self, self.demo()?, "demo-exported"))
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
        self.node.get(|| self.new_node("node", ""))
    }

    /// A node of a test's own; `config` is TOML for our snapshotter and daemon.
    pub(crate) fn new_node(&self, name: &str, config: &str) -> Result<Node> {
        Node::ours(&self.peers, &self.dir.path().join(name), self.pause()?, config)
    }

    /// Ends of the logs of all shared servers, for a failed test.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for log in [
            "registry/registry.log",
            "exporter/exporter.log",
            "node/s/snapshotter.log",
            "node/s/daemon.log",
            "node/c/containerd.log",
        ] {
            let path = self.dir.path().join(log);
            if path.exists() {
                text += &format!("--- end of {log} ---\n{}\n", process::tail(&path));
            }
        }
        text
    }
}

fn missing(peers: &Peers) -> Result<()> {
    peers.require_common()?;
    for program in ["buildkitd", "buildctl"] {
        peers.buildkit(program)?;
    }
    for program in ["containerd", "containerd-shim-runc-v2", "ctr"] {
        peers.containerd(program)?;
    }
    for program in ["runc", "docker-registry", "skopeo"] {
        peers::system(program)?;
    }
    peers.pause_rootfs()?;
    Ok(())
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
