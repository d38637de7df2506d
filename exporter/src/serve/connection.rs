//! One client's connection, and which of its streams are ours to look into.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::health;
use crate::control;
use crate::exporter::Exporter;
use crate::grpc::Status;
use crate::http2::forward::forward;
use crate::http2::upstream::Upstream;
use crate::http2::{respond, settings, socket};

/// How long a client may take for what is no build once its builds have ended: for the last of their progress. One that only
/// watches, such as the history, would never end by itself.
const WATCHED: Duration = Duration::from_secs(5);

/// How long a client may take to begin to speak HTTP/2: each does so at once.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Serves a client until it leaves or, after `shutdown`, its builds have ended.
pub(crate) async fn serve_connection(
    stream: UnixStream,
    exporter: Arc<Exporter>,
    shutdown: CancellationToken,
) {
    let handshake = settings::server().handshake::<_, Bytes>(socket::gathered(stream));
    let begun = tokio::select! {
        biased;
        begun = timeout(HANDSHAKE_DEADLINE, handshake) => begun,
        // One that has begun nothing has nothing to end.
        () = shutdown.cancelled() => return,
    };
    let mut connection = match begun {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::warn!(%error, "a client did not speak HTTP/2"),
        Err(_) => {
            let seconds = HANDSHAKE_DEADLINE.as_secs();
            return tracing::warn!("a client said nothing within {seconds} s: its connection is closed");
        }
    };
    let _counted = exporter.metrics.client();
    let gone = CancellationToken::new();
    let upstream = Arc::new(Upstream::new(exporter.upstream(), gone.clone()));
    let (streams, builds) = (TaskTracker::new(), TaskTracker::new());
    let (mut deadline, mut told) = (None, false);
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = shutdown.cancelled(), if deadline.is_none() => {
                deadline = Some(Instant::now() + exporter.drain());
                builds.close();
                continue;
            }
            // Not before: a build opens streams until its end, which a client that was told to go does not.
            () = builds.wait(), if !told => {
                connection.graceful_shutdown();
                told = true;
                deadline = deadline.map(|drained| drained.min(Instant::now() + WATCHED));
                continue;
            }
            () = until(deadline) => break,
        };
        match accepted {
            Some(Ok((request, respond))) => {
                let is_build = matches!(request.uri().path(), control::SOLVE | control::SESSION);
                let build = is_build.then(|| builds.token());
                let rpc = route(request, respond, Arc::clone(&upstream), Arc::clone(&exporter));
                let gone = gone.clone();
                streams.spawn(async move {
                    let _build = build;
                    tokio::select! {
                        () = gone.cancelled() => {}
                        () = rpc => {}
                    }
                });
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "a client's connection broke off");
                break;
            }
            None => break,
        }
    }
    gone.cancel();
    streams.close();
    streams.wait().await;
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Hands a stream to what is in charge of its RPC: BuildKit's Control in three cases, else nothing but the proxy.
async fn route(
    request: Request<RecvStream>,
    mut downstream: SendResponse<Bytes>,
    upstream: Arc<Upstream>,
    exporter: Arc<Exporter>,
) {
    if request.uri().path() == health::CHECK {
        return health::check(request, downstream, &upstream).await;
    }
    let connection = match upstream.get().await {
        Ok(connection) => connection,
        Err(error) => {
            tracing::warn!(%error, rpc = request.uri().path(), "refused");
            return respond::refuse(&mut downstream, &Status::from(error));
        }
    };
    tracing::trace!(rpc = request.uri().path(), "begins");
    let rpc = control::Rpc {
        request,
        downstream,
        upstream: connection,
        peer: upstream.peer(),
        exporter: &exporter,
    };
    match rpc.request.uri().path() {
        control::SOLVE => control::solve::handle(rpc).await,
        control::STATUS => control::status::handle(rpc).await,
        control::SESSION => control::session::handle(rpc).await,
        _ => forward(rpc.request, rpc.downstream, rpc.upstream, rpc.peer).await,
    }
}
