//! A real buildkitd, and the unmodified buildctl.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use nix::unistd::Pid;

use super::{START_DEADLINE, accepts_unix};
use crate::peers::{self, Peers};
use crate::process::{self, Output, Server};

/// A running buildkitd with runc as its worker.
#[derive(Debug)]
pub struct Buildkitd {
    server: Server,
    socket: PathBuf,
    content_store: PathBuf,
}

impl Buildkitd {
    /// Starts buildkitd with everything under `dir`.
    pub fn start(peers: &Peers, dir: &Path) -> Result<Self> {
        Self::start_with_root(peers, dir, &dir.join("root"))
    }

    /// Starts buildkitd with its state at `root`, and all else under `dir`.
    pub fn start_with_root(peers: &Peers, dir: &Path, root: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let socket = dir.join("buildkitd.sock");
        let config = dir.join("buildkitd.toml");
        fs::write(&config, "# Nothing of the host's configuration applies.\n")?;
        let mut command = Command::new(peers.buildkit("buildkitd")?);
        command
            .arg("--config")
            .arg(config)
            .arg("--root")
            .arg(root)
            .arg("--addr")
            .arg(format!("unix://{}", socket.display()))
            .args(["--oci-worker=true", "--containerd-worker=false", "--oci-worker-net=host"])
            .arg("--oci-worker-binary")
            .arg(peers::system("runc")?);
        // BuildKit's own nydus compression calls nydus-image.
        if let Ok(builder) = peers.nydus("nydus-image") {
            command.env("NYDUS_BUILDER", builder);
        }
        let mut server = Server::spawn("buildkitd", command, dir.join("buildkitd.log"))?;
        server.wait_ready(START_DEADLINE, || accepts_unix(&socket))?;
        let content_store = root.join("runc-overlayfs/content");
        Ok(Self { server, socket, content_store })
    }

    /// The process id.
    pub fn pid(&self) -> Result<Pid> {
        self.server.pid()
    }

    /// The process.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    /// Its address, as `--addr` takes it.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The directory of its content store.
    pub fn content_store(&self) -> &Path {
        &self.content_store
    }
}

/// buildctl against one address: buildkitd itself, or the exporter in front of it.
#[derive(Debug, Clone)]
pub struct Buildctl {
    program: PathBuf,
    address: String,
}

impl Buildctl {
    /// Speaks to `address` (`unix://…`).
    pub fn new(peers: &Peers, address: impl Into<String>) -> Result<Self> {
        Ok(Self { program: peers.buildkit("buildctl")?, address: address.into() })
    }

    /// A buildctl command line against this address, to be completed.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--addr").arg(&self.address);
        command
    }

    /// `buildctl build` of the Dockerfile in `context` with these `--output` values, to be completed or run.
    pub fn build_command(&self, context: &Path, outputs: &[&str]) -> Command {
        let mut command = self.command();
        command.args(["build", "--progress=plain", "--frontend=dockerfile.v0"]);
        for name in ["context", "dockerfile"] {
            command.arg("--local").arg(format!("{name}={}", context.display()));
        }
        for output in outputs {
            command.arg("--output").arg(output);
        }
        command
    }

    /// Runs such a build to its end.
    pub fn build(&self, context: &Path, outputs: &[&str]) -> Result<Output> {
        process::run(&mut self.build_command(context, outputs))
    }
}
