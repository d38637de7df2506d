//! The roles of our own binary.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::unistd::Pid;
use serde_json::Value;
use test_support::log::address_in;

use super::{ProxySnapshotter, START_DEADLINE, accepts_unix, is_mountpoint};
use crate::access_log::AccessLog;
use crate::image_files::ImageFiles;
use crate::leftovers;
use crate::peers;
use crate::process::{self, Server};
use crate::wait;

/// The name under which our snapshotter is known to containerd.
pub const SNAPSHOTTER_NAME: &str = "nydus-cluster";

/// `nydus-cluster` with a configuration of its own, so that the host's does not apply.
fn role(dir: &Path, config: &str) -> Result<Command> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("config.toml"), config)?;
    role_as_before(dir)
}

fn role_as_before(dir: &Path) -> Result<Command> {
    program_with_config(&peers::nydus_cluster()?, dir)
}

fn program_with_config(program: &Path, dir: &Path) -> Result<Command> {
    let mut command = Command::new(program);
    command.arg("--config").arg(dir.join("config.toml"));
    Ok(command)
}

/// `nydus-cluster registry serve`.
#[derive(Debug)]
pub struct EmbeddedRegistry {
    server: Server,
    address: SocketAddr,
    root: PathBuf,
    access_log: AccessLog,
}

impl EmbeddedRegistry {
    /// Starts the registry with storage and logs under `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::serve(dir, &dir.join("storage"), Ipv4Addr::LOCALHOST.into())
    }

    /// Serves the storage directory `root` on an address of this host, with logs under `dir`.
    pub fn serve(dir: &Path, root: &Path, address: IpAddr) -> Result<Self> {
        // A port that the system chooses: one that was free a moment ago may be somebody else's now.
        Self::serve_at(dir, root, SocketAddr::new(address, 0), "")
    }

    /// Serves the same to those alone whom `users` names, the lines of an htpasswd file.
    pub fn serve_to(dir: &Path, root: &Path, address: IpAddr, users: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let htpasswd = dir.join("htpasswd");
        fs::write(&htpasswd, users)?;
        let config = format!("[server]\nhtpasswd = {htpasswd:?}\n");
        Self::serve_at(dir, root, SocketAddr::new(address, 0), &config)
    }

    /// Serves the storage directory `root` over HTTPS on the loopback interface, with the certificate `NAME.crt` and `NAME.key` in
    /// `certificates`.
    pub fn serve_https(dir: &Path, root: &Path, certificates: &Path, name: &str) -> Result<Self> {
        let [certificate, key] = ["crt", "key"].map(|end| certificates.join(format!("{name}.{end}")));
        let config = format!("[server]\ntls = {{ certificate = {certificate:?}, key = {key:?} }}\n");
        Self::serve_at(dir, root, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), &config)
    }

    /// Serves what this one served, where it did; this one has ended.
    pub fn again(&self, dir: &Path) -> Result<Self> {
        // The system may have given the port to somebody's connection meanwhile, which ends soon.
        let taken = Errno::EADDRINUSE.desc();
        wait::until("the registry's port is free", START_DEADLINE, || {
            match Self::serve_at(dir, &self.root, self.address, "") {
                Err(error) if format!("{error:#}").contains(taken) => Ok(None),
                served => served.map(Some),
            }
        })
    }

    fn serve_at(dir: &Path, root: &Path, address: SocketAddr, config: &str) -> Result<Self> {
        let root = root.to_owned();
        let log = dir.join("registry.log");
        // Servers before this one wrote to the same log.
        let begin = fs::metadata(&log).map_or(0, |metadata| metadata.len()) as usize;
        let access_log = AccessLog::new(dir.join("access.log"));
        let mut command = role(dir, config)?;
        command
            .args(["registry", "serve", "--root"])
            .arg(&root)
            .arg("--listen")
            .arg(address.to_string())
            .arg("--access-log")
            .arg(access_log.path());
        let mut server = Server::spawn("registry", command, log.clone())?;
        let mut listening = None;
        server.wait_ready(START_DEADLINE, || {
            let said = fs::read(&log).unwrap_or_default();
            let said = String::from_utf8_lossy(said.get(begin..).unwrap_or_default());
            listening = address_in(&said, "registry listens");
            listening.is_some()
        })?;
        let address = listening.context("the registry is ready and does not say where")?;
        Ok(Self { server, address, root, access_log })
    }

    /// Where it listens; also the host part of its image names.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has been asked of it.
    pub fn access_log(&self) -> &AccessLog {
        &self.access_log
    }

    /// The storage directory, in the layout of CNCF distribution.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file that holds a blob (`sha256:…`).
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.root.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    /// The process.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// How the exporter is to run.
#[derive(Debug, Clone, Default)]
pub struct ExporterOptions {
    /// buildkitd's content store, if it may be read.
    pub content_store: Option<PathBuf>,
    /// Where it keeps what it knows of layers; by default under its own directory.
    pub layer_cache: Option<PathBuf>,
    /// Whether it believes what the image at a name says of its blobs; by default not, so that tests stay apart.
    pub reuse_from_registry: bool,
    /// Further sections of its configuration.
    pub config: String,
}

/// `nydus-cluster exporter`.
#[derive(Debug)]
pub struct Exporter {
    server: Server,
    socket: PathBuf,
}

impl Exporter {
    /// Starts the exporter under `dir` in front of the buildkitd at `upstream` (`unix://…`), which need not run.
    pub fn start(dir: &Path, upstream: &str) -> Result<Self> {
        Self::start_with(dir, upstream, &ExporterOptions::default())
    }

    /// Starts it so that it reads layers from the directory `content_store` where it can.
    pub fn start_with_store(dir: &Path, upstream: &str, content_store: &Path) -> Result<Self> {
        let content_store = Some(content_store.to_owned());
        Self::start_with(dir, upstream, &ExporterOptions { content_store, ..ExporterOptions::default() })
    }

    /// Starts it as `options` say.
    pub fn start_with(dir: &Path, upstream: &str, options: &ExporterOptions) -> Result<Self> {
        let socket = dir.join("exporter.sock");
        // Its own: what another test's exporter knows would be nothing new here.
        let layer_cache = options.layer_cache.clone().unwrap_or_else(|| dir.join("layers"));
        let reuse = options.reuse_from_registry;
        let config = format!(
            "[exporter]\nlayer_cache_dir = {layer_cache:?}\nreuse_from_registry = {reuse}\n{}",
            options.config
        );
        let mut command = role(dir, &config)?;
        command
            .args(["exporter", "--upstream", upstream, "--listen"])
            .arg(format!("unix://{}", socket.display()));
        if let Some(content_store) = &options.content_store {
            command.arg("--content-store").arg(content_store);
        }
        let mut server = Server::spawn("exporter", command, dir.join("exporter.log"))?;
        server.wait_ready(START_DEADLINE, || accepts_unix(&socket))?;
        Ok(Self { server, socket })
    }

    /// Its address, as `buildctl --addr` takes it.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The process id.
    pub fn pid(&self) -> Result<Pid> {
        self.server.pid()
    }

    /// The process.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        self.server.log_text()
    }
}

/// `nydus-cluster snapshotter`, which starts and keeps `nydus-cluster daemon` itself.
#[derive(Debug)]
pub struct Snapshotter {
    server: Server,
    dir: PathBuf,
    socket: PathBuf,
    program: PathBuf,
    released: bool,
}

impl Snapshotter {
    /// Starts the snapshotter with its root under `dir`; `config` is TOML beyond what names sockets and logs.
    ///
    /// Started again with the same `dir`, it goes on with the state it finds there.
    pub fn start(dir: &Path, config: &str) -> Result<Self> {
        Self::start_program(&peers::nydus_cluster()?, dir, config)
    }

    /// As [`Self::start`], with a program of the caller's.
    pub fn start_program(program: &Path, dir: &Path, config: &str) -> Result<Self> {
        let socket = dir.join("snapshotter.sock");
        let (control, log) = (dir.join("daemon.sock"), dir.join("daemon.log"));
        let config = format!(
            "{config}\n[snapshotter.daemon]\nsocket = \"{}\"\nlog = \"{}\"\n",
            control.display(),
            log.display()
        );
        fs::create_dir_all(dir)?;
        fs::write(dir.join("config.toml"), config)?;
        let server = Self::spawn(dir, &socket, program_with_config(program, dir)?)?;
        Ok(Self { server, dir: dir.to_owned(), socket, program: program.to_owned(), released: false })
    }

    /// Starts the snapshotter again, with the state and configuration it had.
    pub fn restart(&mut self) -> Result<()> {
        self.server.stop()?;
        let command = program_with_config(&self.program, &self.dir)?;
        self.server = Self::spawn(&self.dir, &self.socket, command)?;
        Ok(())
    }

    fn spawn(dir: &Path, socket: &Path, mut command: Command) -> Result<Server> {
        command.args(["snapshotter", "--root"]).arg(dir.join("root")).arg("--listen").arg(socket);
        let mut server = Server::spawn("snapshotter", command, dir.join("snapshotter.log"))?;
        let control = dir.join("daemon.sock");
        server.wait_ready(START_DEADLINE, || accepts_unix(socket) && accepts_unix(&control))?;
        Ok(server)
    }

    /// The daemon that the snapshotter started.
    pub fn daemon_pid(&self) -> Result<Pid> {
        let running = leftovers::processes(&self.dir)?;
        let role = |process: &leftovers::Process| process.arguments.iter().any(|word| word == "daemon");
        let daemon = running.iter().find(|process| role(process));
        daemon.map(|process| process.pid).ok_or_else(|| anyhow!("no daemon runs for {}", self.dir.display()))
    }

    /// A command that asks the daemon, such as `node status`.
    pub fn ask(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(peers::nydus_cluster()?);
        command.args(arguments).arg("--socket").arg(self.dir.join("daemon.sock"));
        Ok(command)
    }

    /// What `node status --json` says of the daemon; an error while none answers.
    pub fn status(&self) -> Result<Value> {
        let said = process::run(&mut self.ask(&["node", "status", "--json"])?)?.stdout;
        serde_json::from_str(&said).with_context(|| format!("node status says {said}"))
    }

    /// Has another daemon take over, by the program that is at this one's place now.
    pub fn upgrade(&self) -> Result<process::Output> {
        let mut command = program_with_config(&self.program, &self.dir)?;
        let socket = format!("unix://{}", self.dir.join("daemon.sock").display());
        process::run(command.args(["upgrade", "--socket", &socket]))
    }

    /// What the daemon has written so far.
    pub fn daemon_log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("daemon.log")).unwrap_or_default()).into_owned()
    }

    /// What containerd needs to know of it.
    pub fn as_proxy(&self) -> ProxySnapshotter {
        ProxySnapshotter { name: SNAPSHOTTER_NAME.to_owned(), socket: self.socket.clone() }
    }

    /// The directory given at the start; state and caches are in `root` there.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The process.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    /// From now on the snapshotter and its daemon are not ours to stop.
    pub fn forget(&mut self) {
        self.server.forget();
        self.released = true;
    }
}

/// The daemon outlives the snapshotter on purpose, so it is ended here, with the mounts it leaves.
impl Drop for Snapshotter {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        let stopped = self.server.stop().and_then(|()| leftovers::clear(&self.dir));
        if let Err(error) = stopped {
            process::tell(format_args!("stopping the snapshotter and its daemon: {error:#}"));
        }
        if std::thread::panicking() {
            let log = process::tail(&self.dir.join("daemon.log"));
            process::tell(format_args!("--- end of the daemon's log ---\n{log}"));
        }
    }
}

/// `nydus-cluster image mount` of an image in files.
#[derive(Debug)]
pub struct ImageMount {
    server: Server,
    mountpoint: PathBuf,
    cache: PathBuf,
}

impl ImageMount {
    /// Mounts at `dir/mnt`, with the cache in `dir/cache`.
    pub fn start(files: &ImageFiles, dir: &Path) -> Result<Self> {
        let (mountpoint, cache) = (dir.join("mnt"), dir.join("cache"));
        let mut command = role(dir, "")?;
        fs::create_dir_all(&mountpoint)?;
        command.args(["image", "mount"]).arg(&files.bootstrap).arg(&mountpoint);
        command.arg("--blobs").arg(&files.blobs).arg("--cache").arg(&cache);
        let mut server = Server::spawn("image mount", command, dir.join("mount.log"))?;
        server.wait_ready(START_DEADLINE, || is_mountpoint(&mountpoint))?;
        Ok(Self { server, mountpoint, cache })
    }

    /// Where the image's root is.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// The cache's file of a blob: once all of the image was read, its EROFS device.
    pub fn cached(&self, blob: &str) -> PathBuf {
        self.cache.join(format!("{blob}.blob.data"))
    }
}

impl Drop for ImageMount {
    fn drop(&mut self) {
        // It unmounts on SIGTERM; what is left after a crash goes here.
        if self.server.stop().is_err() || is_mountpoint(&self.mountpoint) {
            let _ = process::run(Command::new("umount").arg("--lazy").arg(&self.mountpoint));
        }
    }
}
