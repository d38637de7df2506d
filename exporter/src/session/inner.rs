//! The connection inside a session, in which buildkitd calls.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, server};
use http::Request;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Tunnel;
use crate::http2::settings;

/// How long the connection to buildkitd may take to say goodbye.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(1);

/// Has `route` serve each stream that buildkitd opens in `tunnel`, until buildkitd ends the connection or `ended` comes.
pub(crate) async fn serve<R: Future<Output = ()> + Send + 'static>(
    tunnel: Tunnel,
    ended: impl Future<Output = Result<(), h2::Error>>,
    route: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> R,
) -> Result<(), h2::Error> {
    let over = CancellationToken::new();
    let streams = TaskTracker::new();
    let _ends_streams = over.clone().drop_guard();
    let mut ended = std::pin::pin!(ended);
    let handshake = settings::server().handshake::<_, Bytes>(tunnel);
    let mut inner: server::Connection<_, Bytes> = tokio::select! {
        inner = handshake => inner?,
        ended = &mut ended => return ended,
    };
    let result = loop {
        tokio::select! {
            accepted = inner.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let stream = route(request, respond);
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
            ended = &mut ended => {
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
