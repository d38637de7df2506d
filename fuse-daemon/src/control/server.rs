//! The daemon's end of the control socket.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use service::control::{self, Server};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::protocol::{
    Answer, BootstrapRequest, DaemonProtocol, ErrorKind, Failure, Handover, LINE_LIMIT, MountRequest, Request,
};
use super::status::{SourceStatus, Status, Summary, WAITING_LIMIT};
use crate::cache::CacheError;
use crate::describe;
use crate::mounts::{Table, TableError};

/// How long a broker may wait for something to do before it asks again.
const RENEWALS_WAIT_LIMIT: Duration = Duration::from_secs(60);

/// How long a mount may be busy before it is detached: programs that are just ending let go of it within that.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(2);

/// Serves until `stop` is cancelled, which a client may ask for as well.
pub(crate) async fn serve(server: &Server, table: &Arc<Table>, stop: &CancellationToken) {
    let client = |stream| serve_client(stream, Arc::clone(table), stop.clone());
    // Requests that are under way end with their own, or with the process: who waits for renewals is not waited for.
    server.run(usize::MAX, stop, client).await.detach_all();
}

async fn serve_client(stream: UnixStream, table: Arc<Table>, stop: CancellationToken) {
    let Some(received) = control::receive::<DaemonProtocol>(&stream).await else { return };
    let (answered, descriptor) = match received.request {
        Request::Renewals { wait_seconds } => {
            let wait = Duration::from_secs(wait_seconds).min(RENEWALS_WAIT_LIMIT);
            // A broker that ended must not be taken for one that waits.
            let repositories = tokio::select! {
                repositories = table.renewals(wait) => repositories,
                () = hung_up(&stream) => return,
            };
            (Ok(Answer::Renewals { repositories }), None)
        }
        request => with_descriptor(request, received.descriptor, table).await,
    };
    let ends = match &answered {
        Ok(Answer::Shutdown { in_use }) => in_use.is_empty(),
        Ok(Answer::Upgrade { .. }) => true,
        _ => false,
    };
    let descriptor = descriptor.as_ref().map(AsFd::as_fd);
    control::reply::<DaemonProtocol>(&stream, received.version, answered, descriptor).await;
    if ends {
        stop.cancel();
    }
}

/// Waits until the client goes away. It has sent its request, and sends nothing more.
async fn hung_up(stream: &UnixStream) {
    let mut rest = [0; 64];
    loop {
        match stream.readable().await.and_then(|()| stream.try_read(&mut rest)) {
            Ok(1..) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return,
        }
    }
}

type Answered = control::Answered<DaemonProtocol>;

/// What a request came to, and the descriptor that belongs to the answer.
async fn with_descriptor(
    request: Request,
    descriptor: Option<OwnedFd>,
    table: Arc<Table>,
) -> (Answered, Option<OwnedFd>) {
    match request {
        Request::Handover { id } => match blocking(move || table.handover(&id)).await {
            Ok((handover, descriptor)) => (Ok(Answer::Handover(handover)), Some(descriptor)),
            Err(error) => (Err(failure(&error)), None),
        },
        request => (answer(request, descriptor, table).await, None),
    }
}

async fn answer(request: Request, descriptor: Option<OwnedFd>, table: Arc<Table>) -> Answered {
    match request {
        Request::Adopt(handover) => match descriptor {
            Some(descriptor) => done(adopt(handover, descriptor, table).await),
            None => invalid("it comes without the mount's descriptor"),
        },
        Request::Handover { .. } => invalid("its answer has a descriptor"),
        Request::Renewals { .. } => invalid("it is answered later"),
        Request::HandOut { accesses } => done(table.hand_out(accesses)),
        Request::Mount(mount) => done(mount_image(mount, table).await),
        Request::MakeBootstrap(request) => done(make_bootstrap(request, table).await),
        Request::AddBackends { id, backends } => {
            table.look_up(&backends).await;
            on_thread(move || done(table.add_backends(&id, &backends))).await
        }
        Request::Umount { id } => on_thread(move || done(table.unmount(&id, UNMOUNT_PATIENCE))).await,
        Request::Trace { id } => {
            let paths = blocking(move || table.trace(&id)).await.map_err(|error| failure(&error))?;
            Ok(Answer::Trace { paths: shown(paths) })
        }
        Request::Status => {
            let sources = table.engine().worker().sources().await;
            on_thread(move || Ok(Answer::Status(status(&table, sources)))).await
        }
        Request::Summary => Ok(Answer::Summary(summary(&table))),
        Request::CacheTotals => {
            on_thread(move || of_cache(table.engine().cache().totals(), Answer::CacheTotals)).await
        }
        Request::Usage { blobs } => {
            let usage =
                move |table: &Table| blobs.iter().map(|blob| table.engine().cache().usage(*blob)).collect();
            on_thread(move || Ok(Answer::Usage { bytes: usage(&table) })).await
        }
        Request::RemoveBlobs { digests } => {
            on_thread(move || of_cache(table.engine().cache().remove(&digests), Answer::Removed)).await
        }
        Request::Keep { blobs } => {
            on_thread(move || of_cache(table.engine().cache().keep(&blobs), Answer::Kept)).await
        }
        Request::Cached => {
            let cached = |blobs| Answer::Cached { blobs };
            on_thread(move || of_cache(table.engine().cache().list(), cached)).await
        }
        Request::Prune => on_thread(move || of_cache(table.engine().cache().prune(), Answer::Kept)).await,
        Request::Pin { blobs, pinned } => {
            on_thread(move || of_cache(table.engine().cache().pin(&blobs, pinned), |()| Answer::Done)).await
        }
        Request::Verify { blobs } => {
            on_thread(move || of_cache(table.engine().cache().verify(&blobs), Answer::Verified)).await
        }
        Request::Upgrade => match table.make_place().await {
            Ok(probe) => Ok(Answer::Upgrade { version: probe.version }),
            Err(error) => {
                let message = describe(&error);
                tracing::warn!(message, "not making place for another program");
                Err(Failure { kind: ErrorKind::Failed, message })
            }
        },
        Request::Shutdown => {
            on_thread(move || Ok(Answer::Shutdown { in_use: table.unmount_unused(UNMOUNT_PATIENCE) })).await
        }
    }
}

/// The paths, as many as go into one line.
fn shown(paths: Vec<Box<[u8]>>) -> Vec<String> {
    let mut room = LINE_LIMIT / 2;
    let texts = paths.into_iter().filter_map(|path| String::from_utf8(path.into_vec()).ok());
    // What JSON escapes takes up to six times its length; names of that kind are rare, and cut the list short.
    texts
        .map_while(|path| {
            room = room.checked_sub(path.escape_default().count() + 3)?;
            Some(path)
        })
        .collect()
}

fn status(table: &Table, sources: Vec<SourceStatus>) -> Status {
    let worker = table.engine().worker().condition();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        // First: what arrives meanwhile is then among the mounts.
        coming: table.arriving(),
        mounts: table.status(),
        worker: Some(worker),
        // A cache that cannot be read is told of by those who need it.
        cache: table.engine().cache().totals().ok(),
        waiting: table.engine().waiting(WAITING_LIMIT),
        sources,
    }
}

fn summary(table: &Table) -> Summary {
    Summary {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        // First, as above.
        coming: table.arriving(),
        mounts: table.summary(),
    }
}

fn of_cache<T>(result: Result<T, CacheError>, answer: impl FnOnce(T) -> Answer) -> Answered {
    result.map(answer).map_err(|error| Failure { kind: ErrorKind::Failed, message: describe(&error) })
}

fn invalid(why: &str) -> Answered {
    Err(Failure { kind: ErrorKind::Invalid, message: format!("the request cannot be answered: {why}") })
}

async fn adopt(handover: Handover, descriptor: OwnedFd, table: Arc<Table>) -> Result<(), TableError> {
    let _coming = table.comes(&handover.mount.id).await;
    table.look_up(&handover.mount.backends).await;
    let (request, of) = (handover.mount.clone(), Arc::clone(&table));
    if blocking(move || of.mount_again(&request)).await? {
        return Ok(());
    }
    let prepared = table.prepare(&handover.mount).await?;
    let of = Arc::clone(&table);
    blocking(move || of.adopt(handover, descriptor, prepared)).await
}

async fn make_bootstrap(request: BootstrapRequest, table: Arc<Table>) -> Result<(), TableError> {
    table.look_up(&request.backends).await;
    table.make_bootstrap(request).await
}

/// What may have to be fetched before the mount is waited for without a thread, and without a lock.
async fn mount_image(mount: MountRequest, table: Arc<Table>) -> Result<(), TableError> {
    table.settled(&mount.id).await;
    table.look_up(&mount.backends).await;
    let (request, of) = (mount.clone(), Arc::clone(&table));
    if blocking(move || of.mount_again(&request)).await? {
        return Ok(());
    }
    let prepared = table.prepare(&mount).await?;
    blocking(move || table.mount(&mount, prepared)).await
}

/// Requests block on the operating system, so each has a thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TableError> + Send + 'static,
) -> Result<T, TableError> {
    let result = tokio::task::spawn_blocking(work).await;
    result.unwrap_or_else(|panic| Err(TableError::Bug(panic.to_string())))
}

async fn on_thread(work: impl FnOnce() -> Answered + Send + 'static) -> Answered {
    let answer = tokio::task::spawn_blocking(work).await;
    answer.unwrap_or_else(|panic| done(Err(TableError::Bug(panic.to_string()))))
}

fn done(result: Result<(), TableError>) -> Answered {
    result.map(|()| Answer::Done).map_err(|error| failure(&error))
}

fn failure(error: &TableError) -> Failure {
    let kind = match error {
        TableError::Id(_) | TableError::Path(_) | TableError::NoBackend | TableError::Backend(_) => {
            ErrorKind::Invalid
        }
        TableError::Unknown(_) => ErrorKind::Unknown,
        TableError::Conflict { .. } => ErrorKind::Conflict,
        TableError::Mount { source, .. } if source.is_of_image() => ErrorKind::Bootstrap,
        TableError::Make { source, .. } if source.is_of_content() => ErrorKind::Bootstrap,
        TableError::Make { .. }
        | TableError::Mount { .. }
        | TableError::Trace { .. }
        | TableError::Bug(_) => ErrorKind::Failed,
    };
    let message = describe(error);
    tracing::warn!(message, "request failed");
    Failure { kind, message }
}
