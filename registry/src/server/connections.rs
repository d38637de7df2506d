//! Connections of clients: accepted, with TLS where that is asked for, and brought to an end.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::ServerState;
use super::stall::StallGuard;

/// How long no new connection is accepted after that failed, as with too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The most that is read of a connection at once, which is also the most that a busy upload holds of it in one buffer.
pub(super) const READ_BUFFER_BYTES: usize = 256 << 10;

/// Accepts connections until `shutdown` is cancelled; then requests get `drain` to finish.
pub(super) async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    state: Arc<ServerState>,
    shutdown: CancellationToken,
    drain: Duration,
) {
    let graceful = GracefulShutdown::new();
    // Cancelled when connections have had their time.
    let abort = CancellationToken::new();
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let served = connection(stream, tls.clone(), state.clone(), graceful.watcher());
        let abort = abort.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = served => {}
                () = abort.cancelled() => {}
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(?drain, "requests did not finish in time, closing their connections");
    }
    abort.cancel();
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, state: Arc<ServerState>, watcher: Watcher) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection without TCP_NODELAY");
    }
    let stream = StallGuard::new(stream, state.idle);
    let Some(tls) = tls else { return requests(stream, state, watcher).await };
    match tokio::time::timeout(state.idle, tls.accept(stream)).await {
        Ok(Ok(stream)) => requests(stream, state, watcher).await,
        Ok(Err(error)) => tracing::debug!(%error, "connection without TLS"),
        Err(_) => tracing::debug!("connection closed: no TLS handshake came"),
    }
}

/// Answers the requests of one connection.
async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    state: Arc<ServerState>,
    watcher: Watcher,
) {
    let idle = state.idle;
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(state.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(READ_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "connection ended");
    }
}
