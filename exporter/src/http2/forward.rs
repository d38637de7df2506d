//! A stream that passes through untouched: headers, data, trailers, resets, in both directions.

use std::future::poll_fn;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};

use super::pump::{PumpError, pump};
use super::respond;
use crate::grpc::{Code, Status};

/// Forwards `request` to `upstream` and its response to `downstream`, until one of them ends the stream.
///
/// `peer` names what is behind `upstream` in the error that the caller gets when that is lost.
pub(crate) async fn forward(
    request: Request<RecvStream>,
    mut downstream: SendResponse<Bytes>,
    upstream: SendRequest<Bytes>,
    peer: &str,
) {
    let (parts, mut body) = request.into_parts();
    let ended = body.is_end_stream();
    let opened = open(Request::from_parts(parts, ()), ended, upstream).await;
    let (response, mut send) = match opened {
        Ok(opened) => opened,
        Err(error) => return respond::refuse(&mut downstream, &lost(peer, &error)),
    };
    let up = async {
        if !ended {
            match pump(&mut body, &mut send).await {
                // The peer has heard enough; what it answers is for the other direction.
                Ok(()) | Err(PumpError::Stopped(_) | PumpError::Sink(_)) => {}
                Err(error) => return error,
            }
        }
        std::future::pending().await
    };
    let error = tokio::select! {
        answered = answer(response, &mut downstream, peer) => match answered {
            Ok(()) => return,
            Err(error) => error,
        },
        error = up => error,
    };
    tracing::debug!(%error, peer, "stream ended early");
    send.send_reset(error.reason());
    downstream.send_reset(error.reason());
}

/// Opens a stream to `upstream`, waiting where it limits their number.
pub(crate) async fn open(
    request: Request<()>,
    ended: bool,
    upstream: SendRequest<Bytes>,
) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
    upstream.ready().await?.send_request(request, ended)
}

/// The direction back to the caller.
async fn answer(
    response: ResponseFuture,
    downstream: &mut SendResponse<Bytes>,
    peer: &str,
) -> Result<(), PumpError> {
    let response = match until_reset(downstream, response).await? {
        Ok(response) => response,
        Err(error) if error.is_reset() => return Err(PumpError::Source(error)),
        Err(error) => {
            respond::refuse(downstream, &lost(peer, &error));
            return Ok(());
        }
    };
    let (parts, mut body) = response.into_parts();
    let ended = body.is_end_stream();
    let mut send =
        downstream.send_response(Response::from_parts(parts, ()), ended).map_err(PumpError::Sink)?;
    if ended {
        return Ok(());
    }
    match pump(&mut body, &mut send).await {
        Err(PumpError::Source(error)) if !error.is_reset() => {
            respond::finish(&mut send, &lost(peer, &error));
            Ok(())
        }
        Err(error) => {
            send.send_reset(error.reason());
            Err(error)
        }
        Ok(()) => Ok(()),
    }
}

/// The result of `future`, unless the caller resets the stream before.
pub(crate) async fn until_reset<T>(
    downstream: &mut SendResponse<Bytes>,
    future: impl Future<Output = T>,
) -> Result<T, PumpError> {
    tokio::select! {
        biased;
        reset = poll_fn(|cx| downstream.poll_reset(cx)) => {
            Err(PumpError::Stopped(reset.unwrap_or(Reason::CANCEL)))
        }
        result = future => Ok(result),
    }
}

/// The status for an RPC whose peer is gone.
pub(crate) fn lost(peer: &str, error: &h2::Error) -> Status {
    Status::new(Code::Unavailable, format!("connection to {peer} lost: {error}"))
}
