//! Session: a bidirectional stream of byte messages that carries another HTTP/2 connection, in which the BuildKit client
//! is the server and buildkitd the client. The inner connection ends here on both sides, so that builds of ours can call the
//! client as well; all that buildkitd calls in it goes to the client. What is for us comes in a session of our own.

use bytes::Bytes;
use h2::client;
use http::{Request, Response};
use tokio_util::sync::CancellationToken;

use super::Rpc;
use crate::client::CLIENT;
use crate::exporter::Exporter;
use crate::http2::forward::{forward, lost, open, until_reset};
use crate::http2::{respond, settings};
use crate::session::{SESSION_ID, SessionClient, Tunnel, inner};

/// Handles one session, until one of its ends closes it.
pub(crate) async fn handle(mut rpc: Rpc<'_>) {
    let (parts, body) = rpc.request.into_parts();
    let request = Request::from_parts(parts, ());
    let id = request.headers().get(SESSION_ID).and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let (response, to_buildkitd) = match open(request.clone(), false, rpc.upstream).await {
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
    match join(&id, buildkitd, client, request, rpc.exporter).await {
        Ok(()) => tracing::debug!(session = id, "session ends"),
        Err(error) => tracing::debug!(session = id, %error, "session broke off"),
    }
}

/// Joins the inner connections.
async fn join(
    id: &str,
    buildkitd: Tunnel,
    client: Tunnel,
    request: Request<()>,
    exporter: &Exporter,
) -> Result<(), h2::Error> {
    let (streams, connection): (client::SendRequest<Bytes>, _) = settings::client().handshake(client).await?;
    let client = SessionClient { streams: streams.clone(), request, gone: CancellationToken::new() };
    let _open = exporter.sessions.register(id, client);
    inner::serve(buildkitd, connection, |request, respond| forward(request, respond, streams.clone(), CLIENT))
        .await
}
