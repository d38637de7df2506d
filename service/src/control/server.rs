//! The server's end.

use std::future::Future;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Answered, Call, Failure, Protocol, Reply, line, versions};
use crate::line::{read_line, write_line};
use crate::{Access, BindError, SocketFile, bind_private};

/// How long a client may take to send its request, and to take the answer: it is one line, of megabytes at most.
const CLIENT_DEADLINE: Duration = Duration::from_secs(10);

/// After a connection could not be accepted. Out of descriptors, most likely: not to spin while it lasts.
const PAUSE: Duration = Duration::from_millis(100);

/// A bound control socket; removed when dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    _file: SocketFile,
}

impl Server {
    /// Binds the socket. One that a dead process left is replaced; a living one's is an error. Needs a runtime.
    ///
    /// # Errors
    ///
    /// When it cannot be listened on.
    pub fn bind(path: &Path, access: &Access) -> Result<Self, BindError> {
        let (listener, file) = bind_private(path, access)?;
        let failed = |source| BindError::System { path: path.to_owned(), action: "watch it", source };
        Ok(Self { listener: UnixListener::from_std(listener).map_err(failed)?, _file: file })
    }

    /// Has each connection served, at most so many at once, until `stop` is cancelled. Gives those that are being served then.
    pub async fn run<F>(
        &self,
        at_once: usize,
        stop: &CancellationToken,
        serve: impl Fn(UnixStream) -> F,
    ) -> JoinSet<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return clients,
                Some(_) = clients.join_next(), if !clients.is_empty() => {}
                accepted = self.listener.accept(), if clients.len() < at_once => match accepted {
                    Ok((stream, _)) => drop(clients.spawn(serve(stream))),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a control connection");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
            }
        }
    }
}

/// A request, as it came.
#[derive(Debug)]
pub struct Received<R> {
    /// What is asked for.
    pub request: R,
    /// The version to answer in.
    pub version: u32,
    /// What came with it.
    pub descriptor: Option<OwnedFd>,
}

/// The request that comes over a connection. `None` if none does, or none that can be answered: that was said to the client.
pub async fn receive<P: Protocol>(stream: &UnixStream) -> Option<Received<P::Request>> {
    let (line, descriptor) =
        match tokio::time::timeout(CLIENT_DEADLINE, read_line(stream, P::LINE_LIMIT)).await {
            Ok(Ok((line, _))) if line.is_empty() => return None,
            Ok(Ok(line)) => line,
            Ok(Err(error)) => {
                tracing::debug!(%error, "control client went away");
                return None;
            }
            Err(_) => {
                tracing::debug!("control client sent no request");
                return None;
            }
        };
    match parse::<P>(&line) {
        Ok((version, request)) => Some(Received { request, version, descriptor }),
        Err(failure) => {
            reply::<P>(stream, P::VERSION, Err(failure), None).await;
            None
        }
    }
}

/// The request, and the version to answer in.
fn parse<P: Protocol>(line: &[u8]) -> Result<(u32, P::Request), Failure<P::Kind>> {
    /// Enough of a call to know which versions its sender speaks.
    #[derive(Deserialize)]
    struct Versions {
        version: u32,
        oldest: Option<u32>,
    }
    let invalid = |message| Failure { kind: P::INVALID, message };
    if line.last() != Some(&b'\n') {
        return Err(invalid(format!("the request is no line of at most {} bytes", P::LINE_LIMIT)));
    }
    let Versions { version, oldest } =
        serde_json::from_slice(line).map_err(|error| invalid(format!("the request is no call: {error}")))?;
    let oldest = oldest.unwrap_or(version);
    let common = version.min(P::VERSION);
    if common < oldest.max(P::OLDEST_VERSION) {
        let (theirs, ours) = (versions(oldest, version), versions(P::OLDEST_VERSION, P::VERSION));
        let message = format!("the request is of version {theirs}; this {} speaks {ours}", P::SERVER);
        return Err(Failure { kind: P::NO_COMMON_VERSION, message });
    }
    let call: Call<P::Request> = serde_json::from_slice(line)
        .map_err(|error| invalid(format!("the request is not known: {error}")))?;
    Ok((common, call.request))
}

/// Sends an answer, with a descriptor where one belongs to it. That the client does not take it is no error of ours.
pub async fn reply<P: Protocol>(
    stream: &UnixStream,
    version: u32,
    answered: Answered<P>,
    descriptor: Option<BorrowedFd<'_>>,
) {
    let reply = line(&Reply::new(version, answered))
        .expect("a reply holds nothing that JSON cannot express: strings, numbers, lists");
    let written = tokio::time::timeout(CLIENT_DEADLINE, write_line(stream, &reply, descriptor)).await;
    if !matches!(written, Ok(Ok(()))) {
        tracing::debug!("control client did not take its answer");
    }
}
