//! The daemon: a table of mounts behind a control socket. And its little sibling, one mount in the foreground.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use registry::client::{Client, ClientConfig};
use serde::{Deserialize, Serialize};
use service::control::Server;
use service::metrics::{MetricsError, MetricsListener};
use service::{Access, BindError, Mode, TcpAddress, UnixAddress};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::access::Accesses;
use crate::cache::{BootId, Cache, CacheError};
use crate::control::server;
use crate::front::FrontConfig;
use crate::fuse::{JournalConfig, Rights, dir_beside};
use crate::metrics::DaemonMetrics;
use crate::mounts::{Engine, EngineConfig, Image, MountError, Table};
use crate::prefetch::PrefetchConfig;
use crate::process::{ProcessConfig, RemoteWorker};
use crate::upgrade::Probe;
use crate::worker::{Backend, Fetcher, LocalWorker, WorkerConfig};

/// Settings of the daemon.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DaemonConfig {
    /// The control socket. Default: `unix:///run/nydus-cluster/daemon.sock`.
    pub socket: UnixAddress,
    /// Permissions of that socket; whoever may write to it can mount. Default: `0600`.
    pub socket_mode: Mode,
    /// Its group, by name or number. Default: that of the process.
    pub socket_group: Option<String>,
    /// Where `GET /metrics` is answered, over plain HTTP. Default: nowhere.
    pub metrics_listen: Option<TcpAddress>,
    /// Where blobs are cached. Default: `/var/lib/nydus-cluster/cache`.
    pub cache_dir: PathBuf,
    /// Bytes on disk that the cache may take: what was used longest ago gives way, but nothing that mounts use or that is
    /// pinned. 0: all that there are. Default: 0.
    pub cache_quota_bytes: u64,
    /// How mounts read.
    pub read: ReadConfig,
    /// What is fetched before somebody reads it.
    pub prefetch: PrefetchSettings,
    /// Whether requests are noted for the next daemon.
    pub journal: JournalUse,
    /// Whether a program that asks a file for an extended attribute which no file of its image has is told that the file has none
    /// (ENODATA), as containerd wants to hear it for a commit, rather than that the file system knows none (EOPNOTSUPP). The kernel
    /// asks for each file then, which makes walks through such an image take much longer. Default: false.
    pub exact_xattrs: bool,
    /// The process that fetches and decodes.
    pub worker: WorkerProcess,
    /// How registries are reached: of a section of its own in the configuration file, which all roles share.
    #[serde(skip)]
    pub registry: ClientConfig,
    /// Arguments with which the program that runs is a worker.
    #[serde(skip)]
    pub worker_arguments: Vec<String>,
    /// Arguments with which a program says, by [`probe`], whether it would work in the place of this one.
    #[serde(skip)]
    pub probe_arguments: Vec<String>,
}

/// When requests of the kernel are noted until they are answered: for the daemon that goes on after one that was killed. It
/// costs time for each.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JournalUse {
    /// Where the kernel does not repeat them: before Linux 6.9.
    #[default]
    Auto,
    /// On every kernel.
    Always,
    /// On none.
    Never,
}

/// The process that fetches and decodes.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerProcess {
    /// Number of the user, and of the group, that it runs as: of nobody else on the machine, as nothing may be theirs to read.
    /// Default: 64912.
    pub user: u32,
}

impl Default for WorkerProcess {
    fn default() -> Self {
        Self { user: 64_912 }
    }
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self {
            socket: UnixAddress::fixed("/run/nydus-cluster/daemon.sock"),
            socket_mode: Mode::OWNER,
            socket_group: None,
            metrics_listen: None,
            cache_dir: PathBuf::from("/var/lib/nydus-cluster/cache"),
            cache_quota_bytes: 0,
            read: ReadConfig::default(),
            prefetch: PrefetchSettings::default(),
            journal: JournalUse::default(),
            exact_xattrs: false,
            worker: WorkerProcess::default(),
            registry: ClientConfig::default(),
            worker_arguments: vec!["worker".to_owned()],
            probe_arguments: vec!["daemon".to_owned(), "--probe".to_owned()],
        }
    }
}

/// How mounts read.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReadConfig {
    /// Seconds until a read of what is not cached fails with EIO, if the registry does not deliver. Default: 30.
    pub deadline_seconds: f64,
    /// Threads of each mount that take requests from the kernel; none of them waits for a registry. Default: 2.
    pub fuse_threads: usize,
    /// Threads that decompress and verify, for all mounts; 0 is one for each processor. Default: 0.
    pub decode_threads: usize,
    /// Bytes of a blob, as stored, to ask a registry for at once. A program that reads less gets what follows in the
    /// blob into the cache as well, of a registry that answers at once an eighth of that. Default: 256 KiB.
    pub request_bytes: u64,
    /// Stored bytes that are held in memory, beyond which each backend has one chunk arriving and no more; half of it may be
    /// asked of one backend at once. Default: 16 MiB.
    pub buffer_bytes: usize,
    /// KiB that the kernel reads ahead of a program; 0 leaves the kernel's own default. Default: 1024.
    pub read_ahead_kib: u32,
}

impl Default for ReadConfig {
    fn default() -> Self {
        Self {
            deadline_seconds: 30.0,
            fuse_threads: 2,
            decode_threads: 0,
            request_bytes: 256 << 10,
            buffer_bytes: 16 << 20,
            read_ahead_kib: 1024,
        }
    }
}

/// What is fetched before somebody reads it. Readers go before.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrefetchSettings {
    /// Files that an image's prefetch table names, when it is mounted. Default: true.
    pub table: bool,
    /// Programs that are read nearly whole, those of Go, when they start. Default: true.
    pub programs: bool,
    /// Everything, so many seconds after the mount: then an image needs no registry any more. 0: not. Default: 0.
    pub complete_after_seconds: u64,
}

impl Default for PrefetchSettings {
    fn default() -> Self {
        Self { table: true, programs: true, complete_after_seconds: 0 }
    }
}

impl From<PrefetchSettings> for PrefetchConfig {
    fn from(settings: PrefetchSettings) -> Self {
        let PrefetchSettings { table, programs, complete_after_seconds: seconds } = settings;
        let complete_after = (seconds > 0).then(|| Duration::from_secs(seconds));
        Self { table, programs, complete_after }
    }
}

/// How long a chunk that could not be had is not asked for again: a program that retries at once, or many that want
/// the same, shall not multiply the load of a registry in trouble; one that comes back after a moment shall be served.
const FAILURE_MEMORY: Duration = Duration::from_secs(2);

/// The part of a read's deadline that a backend may stand still before another one is asked as well: early enough for that
/// one to deliver in time, late enough not to ask twice for what is merely slow.
const PATIENCE_FRACTION: u32 = 6;

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A setting is not valid.
    #[error("setting {name} is {value}; expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// The settings of registries are not valid.
    #[error("settings of registries")]
    Registry(#[from] registry::client::Error),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The control socket cannot be bound.
    #[error(transparent)]
    Socket(#[from] BindError),
    /// Metrics cannot be served.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The operating system refused something else.
    #[error("cannot {action}")]
    System {
        /// What was being done.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The image cannot be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// Runs the daemon until `shutdown` is cancelled or a client has it end. Then all mounts are taken away, those in use
/// lazily; but those whose descriptors somebody else has asked for stay, for the next daemon.
///
/// # Errors
///
/// [`DaemonError`]: it could not start.
pub async fn serve(config: DaemonConfig, shutdown: CancellationToken) -> Result<(), DaemonError> {
    // Each mount takes some descriptors and each cached blob two.
    service::limits::raise_open_files();
    service::memory::keep_large_buffers_mapped();
    let accesses = Arc::new(Accesses::new(Client::new(config.registry.clone())?));
    let access = Access { mode: config.socket_mode, group: config.socket_group.clone() };
    let server = Server::bind(config.socket.path(), &access)?;
    let (mut front, worker) = engine_config(&config.read, config.prefetch)?;
    let (dir, always) = (dir_beside(config.socket.path()), config.journal == JournalUse::Always);
    front.journal = (config.journal != JournalUse::Never).then_some(JournalConfig { dir, always });
    front.exact_xattrs = config.exact_xattrs;
    let process = process_config(worker, &front, &config);
    let worker = RemoteWorker::new(process, Handle::current(), Arc::clone(&accesses));
    let engine = engine(&config.cache_dir, config.cache_quota_bytes, front, worker)?;
    let table = Arc::new(Table::new(engine, accesses, config.probe_arguments));
    // A client may end it, and whoever runs it.
    let stop = shutdown.child_token();
    tracing::info!(socket = %config.socket, cache = %config.cache_dir.display(), "daemon serves");
    if let Some(address) = config.metrics_listen {
        let scrapes = MetricsListener::bind(address).await?;
        tracing::info!(address = %scrapes.address(), "metrics are served");
        tokio::spawn(scrapes.serve(Arc::new(DaemonMetrics::new(Arc::clone(&table))), stop.clone()));
    }
    service::manager::ready();
    tokio::spawn(service::manager::keep_alive());
    server::serve(&server, &table, &stop).await;
    if shutdown.is_cancelled() {
        tracing::info!("the daemon was told to end");
    } else {
        tracing::info!("a client asked the daemon to end");
    }
    service::manager::stopping("leaving mounts that are held, unmounting the rest");
    drop(server);
    let detached = tokio::task::spawn_blocking(move || table.leave()).await;
    if let Err(panic) = detached {
        tracing::error!(%panic, "unmounting ended in a bug");
    }
    Ok(())
}

/// What the worker's process is given.
fn process_config(worker: WorkerConfig, engine: &EngineConfig, config: &DaemonConfig) -> ProcessConfig {
    ProcessConfig {
        worker,
        deadline: engine.front.deadline,
        user: config.worker.user,
        registry: config.registry.clone(),
        arguments: config.worker_arguments.clone(),
    }
}

/// Goes as far as a daemon can beside another one: settings, and a worker that is ready. What it says is for that one.
///
/// # Errors
///
/// [`DaemonError`]: it would not work.
pub async fn probe(config: DaemonConfig) -> Result<Probe, DaemonError> {
    let (front, worker) = engine_config(&config.read, config.prefetch)?;
    let accesses = Arc::new(Accesses::new(Client::new(config.registry.clone())?));
    let process = process_config(worker, &front, &config);
    let worker = RemoteWorker::new(process, Handle::current(), accesses);
    worker.try_start().await.map_err(|source| DaemonError::System { action: "start a worker", source })?;
    Ok(Probe::own())
}

/// One image to mount in the foreground.
pub struct ForegroundMount<'a> {
    /// The bootstrap's file.
    pub bootstrap: &'a Path,
    /// Where to mount.
    pub mountpoint: &'a Path,
    /// What it may do, and who may look.
    pub rights: Rights,
    /// Who has its blobs: a [`RegistryBackend`](crate::worker::RegistryBackend) or a
    /// [`DirectoryBackend`](crate::worker::DirectoryBackend).
    pub backend: Arc<dyn Backend>,
    /// Where blobs are cached; no daemon may be using it.
    pub cache_dir: &'a Path,
    /// How it reads.
    pub read: &'a ReadConfig,
    /// So long after the mount everything is fetched. `None`: not.
    pub complete_after: Option<Duration>,
}

/// Mounts one image and serves it until `shutdown` is cancelled or somebody unmounts it. `mounted` is called once it
/// serves. Needs a runtime of several threads.
///
/// # Errors
///
/// [`DaemonError`]: it could not be mounted or unmounted.
pub async fn mount_foreground(
    mount: ForegroundMount<'_>,
    mounted: impl FnOnce(),
    shutdown: CancellationToken,
) -> Result<(), DaemonError> {
    service::memory::keep_large_buffers_mapped();
    let (mut config, worker) = engine_config(mount.read, PrefetchSettings::default())?;
    config.prefetch.complete_after = mount.complete_after;
    let worker = LocalWorker::new(worker, Handle::current()).map_err(threads)?;
    let engine = engine(mount.cache_dir, 0, config, worker)?;
    let id = format!("foreground-{}", std::process::id());
    let name = mount.bootstrap.display().to_string();
    let image = Image {
        id: &id,
        name: &name,
        bootstrap: mount.bootstrap,
        mountpoint: mount.mountpoint,
        rights: mount.rights,
        backends: vec![mount.backend],
    };
    let session = tokio::task::block_in_place(|| engine.mount(&image))?;
    mounted();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = unmounted(&session) => {}
    }
    tokio::task::block_in_place(|| session.unmount(Duration::ZERO))?;
    Ok(())
}

/// Waits until somebody else unmounted the image.
async fn unmounted(session: &crate::mounts::Mounted<LocalWorker>) {
    while session.is_mounted() {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Cache and front with these settings, on the runtime that this is called in.
fn engine<W: Fetcher>(
    cache_dir: &Path,
    quota: u64,
    config: EngineConfig,
    worker: W,
) -> Result<Engine<W>, DaemonError> {
    let boot =
        BootId::current().map_err(|source| DaemonError::System { action: "find out the boot id", source })?;
    let cache = Cache::open_with_quota(cache_dir, boot, Some(quota).filter(|bytes| *bytes > 0))?;
    Engine::new(cache, config, Handle::current(), worker).map_err(threads)
}

fn threads(source: std::io::Error) -> DaemonError {
    DaemonError::System { action: "start threads", source }
}

fn engine_config(
    read: &ReadConfig,
    prefetch: PrefetchSettings,
) -> Result<(EngineConfig, WorkerConfig), DaemonError> {
    let invalid = |expected| DaemonError::Setting {
        name: "read.deadline_seconds",
        value: read.deadline_seconds.to_string(),
        expected,
    };
    let deadline = Duration::try_from_secs_f64(read.deadline_seconds)
        .map_err(|_| invalid("a positive number of seconds"))?;
    if deadline.is_zero() || deadline > Duration::from_secs(86_400) {
        return Err(invalid("more than 0 and at most a day"));
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if read.decode_threads == 0 { processors } else { read.decode_threads };
    let front = EngineConfig {
        fuse_threads: read.fuse_threads,
        read_ahead_kib: Some(read.read_ahead_kib).filter(|kib| *kib > 0),
        // Of a daemon alone.
        journal: None,
        exact_xattrs: false,
        prefetch: prefetch.into(),
        front: FrontConfig {
            deadline,
            request_bytes: read.request_bytes,
            // Half of what may be under way from one backend.
            ahead_bytes: read.buffer_bytes as u64,
            threads,
            failure_memory: FAILURE_MEMORY,
        },
    };
    let patience = deadline / PATIENCE_FRACTION;
    Ok((front, WorkerConfig { buffer_bytes: read.buffer_bytes, threads, patience }))
}
