//! Images, a registry that has them, and processes of the real binary.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fuse_daemon::control::{
    BackendSpec, BlobId, Client, ClientError, Handover, MountRequest, MountStatus, WorkerStatus,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rafs::bootstrap::Bootstrap;
use rafs::build::{BuildOptions, build_layer};
use registry::Repository;
use registry::server::{Server, ServerConfig};
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::eventually;

/// Where a node's daemon keeps its journals. They have to be in memory, as those in `/run` are: what a disk's file system writes
/// out at that moment is not written to for a daemon that is being killed.
pub(crate) const JOURNALS: &str = "daemon.sock.journals";

/// A directory for everything, a registry, and a runtime for what is asynchronous.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) runtime: Runtime,
    registry: Server,
    _stop: tokio_util::sync::DropGuard,
}

/// An image that the registry has.
pub(crate) struct Image {
    pub(crate) bootstrap: PathBuf,
    pub(crate) reference: String,
    blob: PathBuf,
}

impl Node {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let stop = CancellationToken::new();
        let mut config = ServerConfig::new(dir.path().join("registry"));
        config.listen.set_port(0);
        let registry = runtime.block_on(registry::server::serve(config, stop.clone())).unwrap();
        Self { dir, runtime, registry, _stop: stop.drop_guard() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file system without a device, at a directory that is made for it.
    pub(crate) fn mounted(&self, kind: &str, name: &str) -> PathBuf {
        let place = self.path(name);
        fs::create_dir(&place).unwrap();
        mount(Some(kind), &place, Some(kind), MsFlags::empty(), None::<&str>).unwrap();
        place
    }

    /// An image of these files, with chunks of 64 KiB.
    pub(crate) fn image(&self, name: &str, files: &[(&str, &[u8])]) -> Image {
        self.image_of(name, files, &BuildOptions { chunk_size: 65_536, ..BuildOptions::default() })
    }

    /// An image of these files, built so.
    pub(crate) fn image_of(&self, name: &str, files: &[(&str, &[u8])], options: &BuildOptions) -> Image {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, *content).unwrap();
        }
        let (mut blob, tar) = (Vec::new(), tar.into_inner().unwrap());
        let layer = build_layer(&tar[..], &mut blob, options).unwrap();
        let id = layer.blobs[0].id.unwrap().to_string();
        let image = rafs::merge::merge(vec![layer]).unwrap();
        let bootstrap = self.path(&format!("{name}.boot"));
        let mut file = File::create(&bootstrap).unwrap();
        rafs::bootstrap::write(&image, &rafs::bootstrap::WriteOptions::default(), &mut file).unwrap();

        fs::create_dir_all(self.blobs()).unwrap();
        fs::write(self.blobs().join(&id), &blob).unwrap();
        let repository = format!("{}/{name}", self.registry.address());
        self.push_blob(&repository, blob);
        let root = self.path("registry/docker/registry/v2/blobs/sha256");
        Image {
            bootstrap,
            reference: format!("{repository}:v1"),
            blob: root.join(&id[..2]).join(&id).join("data"),
        }
    }

    /// Has another repository have an image's blob.
    pub(crate) fn push(&self, repository: &str, image: &Image) {
        self.push_blob(repository, fs::read(&image.blob).unwrap());
    }

    fn push_blob(&self, repository: &str, blob: Vec<u8>) {
        let client = registry::client::Client::new(registry::client::ClientConfig::default()).unwrap();
        let place = Repository::parse(repository).unwrap();
        self.runtime.block_on(client.push_blob(&place, blob.into())).unwrap();
    }

    /// Where the registry listens.
    pub(crate) fn registry(&self) -> SocketAddr {
        self.registry.address()
    }

    /// A directory of the blobs of all images, as `--blobs` wants it.
    pub(crate) fn blobs(&self) -> PathBuf {
        self.path("blobs")
    }

    /// A client of the daemon that listens at this node's socket.
    pub(crate) fn daemon(&self) -> Daemon<'_> {
        Daemon { node: self, client: Client::new(self.path("daemon.sock")) }
    }

    /// The command of a role, with sockets and directories of this node.
    pub(crate) fn role(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nydus-cluster"));
        let config = self.path("config.toml");
        if !config.exists() {
            fs::write(&config, "[daemon.read]\ndeadline_seconds = 20\n").unwrap();
        }
        command.env_remove("NYDUS_CLUSTER_LOG").arg("--config").arg(config).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// The command of a daemon.
    pub(crate) fn daemon_command(&self) -> Command {
        let mut command = self.role(&["daemon"]);
        command.arg("--socket").arg(self.path("daemon.sock")).arg("--cache").arg(self.path("cache"));
        command
    }

    /// The command of a snapshotter, which starts no daemon.
    pub(crate) fn snapshotter_command(&self) -> Command {
        let config = self.path("snapshotter.toml");
        fs::write(&config, "[snapshotter.daemon]\nspawn = false\n").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_nydus-cluster"));
        command.arg("--config").arg(config).arg("snapshotter").stdin(Stdio::null());
        command.arg("--root").arg(self.path("root")).arg("--listen").arg(self.path("snapshotter.sock"));
        command.arg("--daemon-socket").arg(self.path("daemon.sock"));
        command
    }
}

/// What a test left mounted would keep the directory.
impl Drop for Node {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let places = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1));
        for place in places.filter(|place| Path::new(place).starts_with(self.dir.path())) {
            // Readers that still wait fail first: as long as this process holds a mount's descriptor, not even its own
            // end would end them.
            let _ = umount2(place, MntFlags::MNT_FORCE);
            let _ = umount2(place, MntFlags::MNT_DETACH);
        }
    }
}

impl Image {
    /// Changes a byte of each chunk that begins behind the first 64 KiB of the stored blob.
    pub(crate) fn corrupt(&self) {
        let bootstrap = Bootstrap::open(&self.bootstrap).unwrap();
        let mut bytes = fs::read(&self.blob).unwrap();
        let chunks = bootstrap.known_chunks(rafs::blob::BlobIndex(0)).unwrap();
        for (_, chunk) in chunks.map(Result::unwrap) {
            bytes[(chunk.compressed_offset + u64::from(chunk.compressed_size / 2)) as usize] ^= 0x55;
        }
        fs::write(&self.blob, bytes).unwrap();
    }
}

/// A port on which nobody listens, and which nobody else is given as long as this is there. A server that is told of it may take it.
pub(crate) fn bound() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket
}

/// Calls to the daemon that wait for it to run.
pub(crate) struct Daemon<'a> {
    node: &'a Node,
    client: Client,
}

impl Daemon<'_> {
    pub(crate) fn wait(&self) {
        let status = || self.node.runtime.block_on(self.client.status()).ok();
        eventually("the daemon answers", status);
    }

    /// The mounts that it is about to serve.
    pub(crate) fn coming(&self) -> Vec<String> {
        self.node.runtime.block_on(self.client.status()).unwrap().coming
    }

    /// What it serves.
    pub(crate) fn mounts(&self) -> Vec<MountStatus> {
        self.node.runtime.block_on(self.client.status()).unwrap().mounts
    }

    /// How its worker is.
    pub(crate) fn worker(&self) -> WorkerStatus {
        self.node.runtime.block_on(self.client.status()).unwrap().worker.unwrap()
    }

    /// Unmounts an image.
    pub(crate) fn unmount(&self, id: &str) {
        self.node.runtime.block_on(self.client.umount(id)).unwrap();
    }

    /// Unmounts an image, and empties the cache of it.
    pub(crate) fn forget(&self, id: &str, image: &Image) {
        self.unmount(id);
        let bootstrap = Bootstrap::open(&image.bootstrap).unwrap();
        let blobs: Vec<_> = bootstrap.blobs().iter().map(|blob| BlobId(blob.id.unwrap())).collect();
        self.node.runtime.block_on(self.client.remove_blobs(&blobs)).unwrap();
    }

    /// What another daemon needs to go on with a mount.
    pub(crate) fn handover(&self, id: &str) -> (Handover, OwnedFd) {
        self.node.runtime.block_on(self.client.handover(id)).unwrap()
    }

    /// Has a mount taken over.
    pub(crate) fn adopt(&self, handover: &Handover, descriptor: &OwnedFd) -> Result<(), ClientError> {
        self.node.runtime.block_on(self.client.adopt(handover, descriptor.as_fd()))
    }

    /// Mounts an image; where it is.
    pub(crate) fn mount(&self, id: &str, image: &Image) -> PathBuf {
        self.try_mount(id, image).unwrap()
    }

    pub(crate) fn try_mount(&self, id: &str, image: &Image) -> Result<PathBuf, ClientError> {
        self.try_mount_from(id, image, vec![BackendSpec::of_image(&image.reference).unwrap()])
    }

    /// Mounts an image whose blobs these have; where it is.
    pub(crate) fn try_mount_from(
        &self,
        id: &str,
        image: &Image,
        backends: Vec<BackendSpec>,
    ) -> Result<PathBuf, ClientError> {
        let request = MountRequest {
            id: id.to_owned(),
            bootstrap: image.bootstrap.clone(),
            mountpoint: self.node.path("mnt").join(id),
            image: image.reference.clone(),
            backends,
        };
        self.node.runtime.block_on(self.client.mount(&request))?;
        Ok(request.mountpoint)
    }
}

/// A process that is killed when dropped.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }

    pub(crate) fn running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Its exit status, once it has ended.
    pub(crate) fn ended(&mut self) -> std::process::ExitStatus {
        eventually("the process ends", || self.0.try_wait().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
