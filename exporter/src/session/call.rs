//! One call to a service that the BuildKit client serves in its session.

use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderValue, Method, Request, header};
use tokio::time::timeout;

use crate::grpc::frame::{self, MessageReader};
use crate::grpc::{Code, Status, status};
use crate::http2::forward::{lost, open};
use crate::http2::pump;
use crate::session::CLIENT;

/// As BuildKit waits: the client may have to ask its user's key store.
const DEADLINE: Duration = Duration::from_secs(60);

/// The largest answer taken.
const ANSWER_LIMIT_BYTES: usize = 1 << 20;

/// Calls `path` with one message, and returns the one message of the answer.
pub(super) async fn unary(
    client: SendRequest<Bytes>,
    path: &'static str,
    message: &[u8],
) -> Result<Bytes, Status> {
    let late = |_| {
        let message = format!("{CLIENT} did not answer {path} within {} s", DEADLINE.as_secs());
        Status::new(Code::Unavailable, message)
    };
    timeout(DEADLINE, exchange(client, path, message)).await.map_err(late)?
}

async fn exchange(client: SendRequest<Bytes>, path: &'static str, message: &[u8]) -> Result<Bytes, Status> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::builder()
        .scheme("http")
        .authority("localhost")
        .path_and_query(path)
        .build()
        .expect("the paths of calls are valid");
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    let gone = |error: h2::Error| lost(CLIENT, &error);
    let (response, mut send) = open(request, false, client).await.map_err(gone)?;
    if pump::send(&mut send, frame::encode(message)).await.is_ok() {
        // An early answer ends the request; it says what there is to say.
        let _ = send.send_data(Bytes::new(), true);
    }
    let (head, body) = response.await.map_err(gone)?.into_parts();
    if body.is_end_stream() {
        status::of(&head.headers)?;
        return Err(Status::new(Code::Internal, format!("{CLIENT} answered {path} with nothing")));
    }
    let mut reader = MessageReader::new(body, ANSWER_LIMIT_BYTES);
    let answer = reader.message().await?;
    status::of(&reader.trailers().await?.unwrap_or_default())?;
    answer.ok_or_else(|| Status::new(Code::Internal, format!("{CLIENT} answered {path} with nothing")))
}
