//! Session: a bidirectional stream of byte messages that carries another HTTP/2 connection, in which the BuildKit client
//! is the server and buildkitd the client. The inner connection ends here on both sides, so that single streams of it can
//! be answered by us.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, client, server};
use http::{HeaderValue, Request, Response};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Rpc;
use crate::grpc::respond;
use crate::http2::forward::{lost, open, until_reset};
use crate::http2::settings;
use crate::serve::Exporter;
use crate::session::{Tunnel, route};

/// Header with the session's id.
const SESSION_ID: &str = "x-docker-expose-session-uuid";
/// Header, repeated, with the methods that the client serves.
const SESSION_METHOD: &str = "x-docker-expose-session-grpc-method";
/// The method by which buildkitd sends a tar stream; a client without such an output does not serve it, but we do.
const FILE_SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";

/// How long the inner connection to buildkitd may take to say goodbye.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(1);

/// Handles one session, until one of its ends closes it.
pub(crate) async fn handle(mut rpc: Rpc<'_>) {
    let (mut parts, body) = rpc.request.into_parts();
    let id = parts.headers.get(SESSION_ID).and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    // Whether the build has an output of ours is not known yet.
    if !parts.headers.get_all(SESSION_METHOD).iter().any(|method| method == FILE_SEND) {
        parts.headers.append(SESSION_METHOD, HeaderValue::from_static(FILE_SEND));
    }
    let (response, to_buildkitd) = match open(Request::from_parts(parts, ()), false, rpc.upstream).await {
        Ok(opened) => opened,
        Err(error) => return respond::refuse(&mut rpc.downstream, &lost(rpc.peer, &error)),
    };
    let response = match until_reset(&mut rpc.downstream, response).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return respond::refuse(&mut rpc.downstream, &lost(rpc.peer, &error)),
        Err(_) => return,
    };
    let (head, from_buildkitd) = response.into_parts();
    let ended = from_buildkitd.is_end_stream();
    let to_client = match rpc.downstream.send_response(Response::from_parts(head, ()), ended) {
        Ok(to_client) if !ended => to_client,
        _ => return,
    };
    tracing::debug!(session = id, "session begins");
    let buildkitd = Tunnel::to_server(from_buildkitd, to_buildkitd);
    let client = Tunnel::to_client(body, to_client);
    match join(&id, buildkitd, client, rpc.exporter).await {
        Ok(()) => tracing::debug!(session = id, "session ends"),
        Err(error) => tracing::debug!(session = id, %error, "session broke off"),
    }
}

/// Joins the inner connections.
async fn join(id: &str, buildkitd: Tunnel, client: Tunnel, exporter: &Exporter) -> Result<(), h2::Error> {
    let (to_client, connection): (client::SendRequest<Bytes>, _) =
        settings::client().handshake(client).await?;
    let _open = exporter.sessions.register(id, to_client.clone());
    let over = CancellationToken::new();
    let streams = TaskTracker::new();
    let _ends_streams = over.clone().drop_guard();
    let mut connection = std::pin::pin!(connection);
    let handshake = settings::server().handshake::<_, Bytes>(buildkitd);
    let mut inner: server::Connection<_, Bytes> = tokio::select! {
        inner = handshake => inner?,
        ended = &mut connection => return ended,
    };
    let result = loop {
        tokio::select! {
            accepted = inner.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let stream = route(id.to_owned(), request, respond, to_client.clone(), exporter.builds.clone());
                    let over = over.clone();
                    streams.spawn(async move {
                        tokio::select! {
                            () = over.cancelled() => {}
                            () = stream => {}
                        }
                    });
                }
                Some(Err(error)) => break Err(error),
                None => break Ok(()),
            },
            ended = &mut connection => {
                inner.abrupt_shutdown(Reason::NO_ERROR);
                let closed = poll_fn(|cx| inner.poll_closed(cx));
                // What is left to send is of no use to anyone if buildkitd does not read it.
                let _ = tokio::time::timeout(GOODBYE_DEADLINE, closed).await;
                break ended;
            }
        }
    };
    over.cancel();
    streams.close();
    streams.wait().await;
    result
}
