//! A registry in this process: OCI distribution 1.1 on CNCF distribution's storage layout.
//!
//! A request goes `connections` → `mod` → `routes` (what the path names) → a handler (`blobs`, `uploads`,
//! `manifests`, `referrers`, `lists`) → `storage` (files) → `reply`, and its line in the log is written when the
//! last byte of the answer is out (`access`).

mod access;
mod blobs;
mod body;
mod config;
mod connections;
#[cfg(test)]
mod crowd;
mod elsewhere;
mod error;
#[cfg(test)]
mod hostile;
pub mod htpasswd;
mod lists;
mod manifests;
mod password;
mod referrers;
mod reply;
mod request;
mod room;
mod routes;
mod stall;
mod storage;
mod tls;
mod uploads;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use http::header::{RANGE, USER_AGENT};
use http::{Method, Request, Response};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use self::access::AccessRecord;
pub use self::config::ServerConfig;
pub use self::elsewhere::BlobsElsewhere;
pub use self::error::ServerError;
pub use self::tls::TlsConfig;

use self::access::{AccessLog, Logged, Pending};
use self::error::{Code, Failure};
use self::password::Passwords;
use self::referrers::Referrers;
use self::reply::Reply;
use self::request::{Head, RequestBody};
use self::room::Room;
use self::routes::Route;
use self::storage::Storage;
use self::uploads::Uploads;
use crate::layout::Layout;

/// How much of an unwanted request body is read so that the client gets to see the answer: a piece of
/// an upload of common clients.
const DRAIN_BYTES: u64 = 32 << 20;

/// How often stale uploads are looked for, unless they are stale sooner.
const PURGE_EVERY: Duration = Duration::from_secs(3600);

/// A registry that runs.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// The address it listens on, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until it has stopped, after its cancellation.
    pub async fn stopped(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "registry server ended abnormally");
        }
    }
}

/// Serves the registry until `shutdown` is cancelled; then requests get [`ServerConfig::drain_seconds`] to finish.
pub async fn serve(config: ServerConfig, shutdown: CancellationToken) -> Result<Server, ServerError> {
    storage::create_root(&config.root).map_err(at("root", &config.root))?;
    let storage = Storage::new(Layout::directory(&config.root));
    listen(config, storage, None, shutdown).await
}

/// Serves `layout` as [`serve`] does, but nothing can be written. `config.root` is only named in the log.
pub async fn serve_read_only(
    config: ServerConfig,
    layout: Layout,
    shutdown: CancellationToken,
) -> Result<Server, ServerError> {
    listen(config, Storage::new(layout), Some(StandIn::default()), shutdown).await
}

/// What is known of content that stands in for that of other registries.
#[derive(Clone, Debug, Default)]
pub struct StandIn {
    /// With which part names of repositories begin, by the registry that they are of. containerd tells a mirror by the
    /// parameter `ns` which registry it wants, also where it does not ask below that part.
    pub hosts: BTreeMap<String, String>,
    /// Why a blob may not be here: a part of the answer where one is not.
    pub absent: Option<String>,
    /// Blobs that are fetched when they are asked for.
    pub elsewhere: Option<BlobsElsewhere>,
}

impl StandIn {
    /// The repository that is meant by `name` where the registry `namespace` is wanted.
    fn repository(&self, name: String, namespace: Option<&str>) -> String {
        match namespace.and_then(|host| self.hosts.get(host)) {
            Some(first) if name.split('/').next() != Some(first) => format!("{first}/{name}"),
            _ => name,
        }
    }
}

/// Serves `layout` as [`serve_read_only`] does, in place of other registries.
pub async fn serve_stand_in(
    config: ServerConfig,
    layout: Layout,
    stand_in: StandIn,
    shutdown: CancellationToken,
) -> Result<Server, ServerError> {
    listen(config, Storage::new(layout), Some(stand_in), shutdown).await
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ServerError {
    let path = path.to_owned();
    move |source| ServerError::Path { what, path, source }
}

/// `stand_in` where nothing can be written.
async fn listen(
    config: ServerConfig,
    storage: Storage,
    stand_in: Option<StandIn>,
    shutdown: CancellationToken,
) -> Result<Server, ServerError> {
    let state = ServerState::new(&config, storage, stand_in)?;
    let tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
    let listener = TcpListener::bind(config.listen).await;
    let listen_failed = |source| ServerError::Listen { address: config.listen, source };
    let listener = listener.map_err(listen_failed)?;
    let address = listener.local_addr().map_err(listen_failed)?;
    let stale = Duration::from_secs(config.stale_upload_seconds.max(1));
    let read_only = state.stand_in.is_some();
    let purge = (!read_only)
        .then(|| AbortOnDropHandle::new(tokio::spawn(purge_uploads(state.storage.clone(), stale))));
    tracing::info!(%address, root = %config.root.display(), "registry listens");
    for warning in config.warnings(address, read_only) {
        tracing::warn!("{warning}");
    }
    let drain = Duration::from_secs(config.drain_seconds);
    let task = tokio::spawn(async move {
        connections::accept(listener, tls, state, shutdown, drain).await;
        drop(purge);
    });
    Ok(Server { address, task })
}

/// Removes uploads that nothing was written to for `stale`, at the start and from time to time.
async fn purge_uploads(storage: Storage, stale: Duration) {
    let mut ticks = tokio::time::interval(stale.min(PURGE_EVERY));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let storage = storage.clone();
        match blocking(move || storage.purge_uploads(stale)).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "removed stale uploads"),
            Err(error) => tracing::warn!(%error, "cannot remove stale uploads"),
        }
    }
}

/// What all requests share.
struct ServerState {
    storage: Storage,
    uploads: Uploads,
    /// Memory for what uploads bring.
    room: Room,
    /// Memory for manifests that are on their way.
    manifests: Room,
    /// Places for uploads that write.
    disk: Arc<Semaphore>,
    referrers: Arc<Referrers>,
    log: Arc<AccessLog>,
    passwords: Option<Arc<Passwords>>,
    /// There where nothing can be written.
    stand_in: Option<StandIn>,
    delete: bool,
    idle: Duration,
}

impl ServerState {
    fn new(
        config: &ServerConfig,
        storage: Storage,
        stand_in: Option<StandIn>,
    ) -> Result<Arc<Self>, ServerError> {
        let log_path = config.access_log.clone().unwrap_or_default();
        let log = AccessLog::open(config.access_log.as_deref()).map_err(at("access_log", &log_path))?;
        let idle = Duration::from_secs(config.idle_seconds.max(1));
        Ok(Arc::new(Self {
            storage,
            uploads: Uploads::default(),
            room: Room::new(uploads::ROOM_BYTES, idle),
            manifests: Room::new(manifests::ROOM_BYTES, idle),
            disk: Arc::new(Semaphore::new(uploads::WRITERS)),
            referrers: Arc::default(),
            log: Arc::new(log),
            passwords: config.htpasswd.as_deref().map(Passwords::read).transpose()?.map(Arc::new),
            stand_in,
            delete: config.delete,
            idle,
        }))
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Logged> {
        let started = Instant::now();
        let (parts, incoming) = request.into_parts();
        let received = Arc::new(AtomicU64::new(0));
        let mut body = RequestBody::new(incoming, received.clone(), self.idle);
        let text = |name| {
            parts.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let record = AccessRecord {
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().map(str::to_owned),
            status: 0,
            range: text(RANGE),
            bytes_sent: 0,
            bytes_received: 0,
            milliseconds: 0,
            agent: text(USER_AGENT),
        };
        let mut pending = Pending { log: self.log.clone(), record, started, received };
        let path = parts.uri.path().to_owned();
        let head = Head::new(parts);
        let reply = match self.route(&head, &path, &mut body).await {
            Ok(reply) => reply,
            Err(failure) => {
                match &failure {
                    Failure::Storage { .. } => {
                        tracing::error!(method = %head.method(), path, error = %failure, "request failed")
                    }
                    _ => tracing::debug!(method = %head.method(), path, reason = %failure, "request refused"),
                }
                Reply::failure(&failure)
            }
        };
        if !body.is_empty() && !head.expects_continue() {
            // Behind the answer, which need not wait for it.
            tokio::spawn(body.drain(DRAIN_BYTES));
        }
        pending.record.status = reply.status().as_u16();
        reply.into_response(head.method(), pending)
    }

    async fn route(&self, head: &Head, path: &str, body: &mut RequestBody) -> Result<Reply, Failure> {
        // First of all, so that strangers learn nothing of what there is, not even by which errors they get.
        if let Some(passwords) = &self.passwords {
            passwords.check(head).await?;
        }
        let mut route = Route::parse(path)?;
        if let Some(stand_in) = &self.stand_in
            && let Some(name) = route.name()
        {
            *name = stand_in.repository(std::mem::take(name), head.parameter("ns"));
        }
        let method = head.method();
        if !route.methods().contains(method) {
            return Ok(Reply::method_not_allowed(route.methods()));
        }
        let read = head.is_read();
        if self.stand_in.is_some() && !read {
            return Err(Failure::new(Code::Unsupported, "this registry can only be read"));
        }
        match route {
            Route::Base => Ok(Reply::json(&serde_json::json!({}))),
            Route::Catalog => lists::catalog(self, head).await,
            Route::Tags { name } => lists::tags(self, head, name).await,
            Route::Referrers { name, digest } => referrers::get(self, head, name, digest).await,
            Route::Manifest { name, reference } if read => manifests::get(self, head, name, reference).await,
            Route::Manifest { name, reference } if *method == Method::PUT => {
                manifests::put(self, head, body, name, reference).await
            }
            Route::Manifest { name, reference } => manifests::delete(self, name, reference).await,
            Route::Blob { name, digest } if read => blobs::get(self, head, name, digest).await,
            Route::Blob { name, digest } => blobs::delete(self, name, digest).await,
            Route::Uploads { name } => uploads::begin(self, head, body, name).await,
            Route::Upload { name, id } if read => uploads::status(self, name, id).await,
            Route::Upload { name, id } if *method == Method::PATCH => {
                uploads::append(self, head, body, name, id).await
            }
            Route::Upload { name, id } if *method == Method::PUT => {
                uploads::finish(self, head, body, name, id).await
            }
            Route::Upload { name, id } => uploads::cancel(self, name, id).await,
        }
    }

    fn check_delete(&self) -> Result<(), Failure> {
        if self.delete { Ok(()) } else { Err(Failure::new(Code::Unsupported, "deletion is turned off")) }
    }
}

/// Runs work on files where it holds up no other request.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Failure::Storage {
            doing: "worker thread",
            path: PathBuf::new(),
            source: std::io::Error::other(e),
        }),
    }
}
