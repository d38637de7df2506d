//! The snapshotter's end of its control socket.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::service::line::{read_line, write_line};
use ::service::{Access, SocketFile, bind_private};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::protocol::{Answer, Call, ErrorKind, LINE_LIMIT, OLDEST_VERSION, Reply, Request, VERSION};
use crate::daemon::describe;
use crate::error::Error;
use crate::snapshots::Snapshotter;

/// How long a client may take to send its request, and to take the answer: it is one line, of megabytes at most.
const CLIENT_DEADLINE: Duration = Duration::from_secs(10);

/// Requests at once. Each may have a set in memory.
const AT_ONCE: usize = 8;

/// After a connection could not be accepted. Out of descriptors, most likely: not to spin while it lasts.
const PAUSE: Duration = Duration::from_millis(100);

/// A bound control socket; removed when dropped.
pub(crate) struct Server {
    listener: UnixListener,
    _file: SocketFile,
}

/// Listens on the socket. One that a dead process left is replaced; a living one's is an error. Needs a runtime.
pub(crate) fn bind(path: &Path, access: &Access) -> Result<Server, Error> {
    let (listener, file) = bind_private(path, access)?;
    let listener = UnixListener::from_std(listener)
        .map_err(|error| Error::Serve { path: path.to_owned(), source: error.into() })?;
    Ok(Server { listener, _file: file })
}

/// Answers until `shutdown`, then ends the requests that are under way.
pub(crate) async fn serve(server: Server, snapshotter: Arc<Snapshotter>, shutdown: &CancellationToken) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = clients.join_next(), if !clients.is_empty() => {}
            accepted = server.listener.accept(), if clients.len() < AT_ONCE => match accepted {
                Ok((stream, _)) => drop(clients.spawn(serve_client(stream, Arc::clone(&snapshotter)))),
                Err(error) => {
                    warn!(%error, "cannot accept a control connection");
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
    while clients.join_next().await.is_some() {}
}

async fn serve_client(stream: UnixStream, snapshotter: Arc<Snapshotter>) {
    let line = match tokio::time::timeout(CLIENT_DEADLINE, read_line(&stream, LINE_LIMIT)).await {
        Ok(Ok((line, _))) if line.is_empty() => return,
        Ok(Ok((line, _))) => line,
        Ok(Err(error)) => return debug!(%error, "control client went away"),
        Err(_) => return debug!("control client sent no request"),
    };
    let (version, answer) = match parse(&line) {
        Ok((version, request)) => (version, answer(request, &snapshotter).await),
        Err((kind, message)) => (VERSION, Answer::Error { kind, message }),
    };
    drop(line);
    let mut reply = serde_json::to_vec(&Reply { version, answer })
        .expect("a reply holds nothing that JSON cannot express: strings, numbers, lists");
    reply.push(b'\n');
    let written = tokio::time::timeout(CLIENT_DEADLINE, write_line(&stream, &reply, None)).await;
    if !matches!(written, Ok(Ok(()))) {
        debug!("control client did not take its answer");
    }
}

/// The request, and the version to answer in.
fn parse(line: &[u8]) -> Result<(u32, Request), (ErrorKind, String)> {
    /// Enough of a call to know which versions its sender speaks.
    #[derive(serde::Deserialize)]
    struct Versions {
        version: u32,
        oldest: Option<u32>,
    }
    let invalid = |message| (ErrorKind::Invalid, message);
    if line.last() != Some(&b'\n') {
        let problem = format!("the request is no line of at most {LINE_LIMIT} bytes");
        return Err(invalid(problem));
    }
    let Versions { version, oldest } =
        serde_json::from_slice(line).map_err(|error| invalid(format!("the request is no call: {error}")))?;
    let oldest = oldest.unwrap_or(version);
    let common = version.min(VERSION);
    if common < oldest.max(OLDEST_VERSION) {
        let message = format!(
            "the request is of version {oldest} to {version}; this snapshotter speaks {OLDEST_VERSION} to {VERSION}"
        );
        return Err((ErrorKind::Version, message));
    }
    let call: Call = serde_json::from_slice(line)
        .map_err(|error| invalid(format!("the request is not known: {error}")))?;
    Ok((common, call.request))
}

async fn answer(request: Request, snapshotter: &Arc<Snapshotter>) -> Answer {
    let answered = match request {
        Request::Put(set) => {
            let (name, images) = (set.name.clone(), set.images.len());
            snapshotter.put_set(*set).await.map(|changed| {
                info!(set = name, images, changed, "images are run as RAFS");
                if changed {
                    // Nobody waits for it: those that are mounted read on from where they did.
                    let snapshotter = Arc::clone(snapshotter);
                    tokio::spawn(async move { snapshotter.tell_backends().await });
                }
                Answer::Done { changed }
            })
        }
        Request::Remove { name } => {
            let shown = name.clone();
            snapshotter.remove_set(name).await.map(|changed| {
                info!(set = shown, changed, "images are pulled as they are");
                Answer::Done { changed }
            })
        }
        Request::List => snapshotter.sets().await.map(|sets| Answer::Sets { sets }),
    };
    answered.unwrap_or_else(|error| {
        let kind = if matches!(error, Error::Set(_)) { ErrorKind::Invalid } else { ErrorKind::Failed };
        let message = describe(&error);
        warn!(message, "control request failed");
        Answer::Error { kind, message }
    })
}
