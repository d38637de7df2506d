//! Answering an RPC ourselves.

use bytes::Bytes;
use h2::SendStream;
use h2::server::SendResponse;
use http::{Response, StatusCode, header};

use super::pump;
use crate::grpc::{Status, frame};

/// The head of every gRPC response.
pub(crate) fn head() -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::OK;
    let value = header::HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

/// Ends an RPC that has not been answered yet: headers that are trailers at once.
pub(crate) fn refuse(respond: &mut SendResponse<Bytes>, status: &Status) {
    let mut response = head();
    response.headers_mut().extend(status.trailers());
    if let Err(error) = respond.send_response(response, true) {
        tracing::debug!(%error, %status, "the caller left before it could be refused");
    }
}

/// Ends an RPC whose response has begun.
pub(crate) fn finish(send: &mut SendStream<Bytes>, status: &Status) {
    if let Err(error) = send.send_trailers(status.trailers()) {
        tracing::debug!(%error, %status, "the caller left before the end of the response");
    }
}

/// Sends one message.
pub(crate) async fn message(send: &mut SendStream<Bytes>, message: &[u8]) -> Result<(), Status> {
    pump::send(send, frame::encode(message)).await.map_err(|error| error.status())
}
