//! Calls of ours: to services that the BuildKit client serves in its session, and to buildkitd's.

use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};
use tokio::time::timeout;

use super::forward::{lost, open};
use super::pump;
use crate::grpc::frame::{self, MessageReader};
use crate::grpc::{Code, Status, status};

/// As BuildKit waits: the client may have to ask its user's key store, or its disk be slow.
const DEADLINE: Duration = Duration::from_secs(60);

/// The largest message taken: a content service sends 1 MiB at once.
const ANSWER_LIMIT_BYTES: usize = 4 << 20;

/// Calls `path` of the peer behind `streams`, which errors call `peer`, with one message, and returns the one message of the answer.
pub(crate) async fn unary(
    streams: SendRequest<Bytes>,
    peer: &'static str,
    path: &'static str,
    headers: &[(&'static str, String)],
    message: &[u8],
) -> Result<Bytes, Status> {
    let mut call = Call::open(streams, peer, path, headers).await?;
    // Where that fails, the answer says why.
    let _ = call.send(message).await;
    call.close();
    let answer = call.receive().await?;
    let nothing = || Status::new(Code::Internal, format!("{peer} answered {path} with nothing"));
    let answer = answer.ok_or_else(nothing)?;
    call.receive().await?;
    Ok(answer)
}

/// A call under way; dropping it resets its stream.
pub(crate) struct Call {
    peer: &'static str,
    path: &'static str,
    send: SendStream<Bytes>,
    answer: CallAnswer,
}

enum CallAnswer {
    Coming(ResponseFuture),
    Begun(MessageReader),
    Ended,
}

impl Call {
    /// Begins a call of `path` of the peer behind `streams`, which errors call `peer`.
    pub(crate) async fn open(
        streams: SendRequest<Bytes>,
        peer: &'static str,
        path: &'static str,
        headers: &[(&'static str, String)],
    ) -> Result<Self, Status> {
        let opened = timeout(DEADLINE, open(request(path, headers)?, false, streams)).await;
        let (response, send) = opened.map_err(|_| late(peer, path))?.map_err(|error| lost(peer, &error))?;
        Ok(Self { peer, path, send, answer: CallAnswer::Coming(response) })
    }

    /// Sends a message.
    pub(crate) async fn send(&mut self, message: &[u8]) -> Result<(), Status> {
        let sent = timeout(DEADLINE, pump::send(&mut self.send, frame::encode(message))).await;
        sent.map_err(|_| late(self.peer, self.path))?.map_err(|error| error.status())
    }

    /// Says that nothing more is sent.
    pub(crate) fn close(&mut self) {
        // An early answer ends the request; it says what there is to say.
        let _ = self.send.send_data(Bytes::new(), true);
    }

    /// The next message; `None` when the call has ended well.
    pub(crate) async fn receive(&mut self) -> Result<Option<Bytes>, Status> {
        timeout(DEADLINE, self.next()).await.map_err(|_| late(self.peer, self.path))?
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        if let CallAnswer::Coming(response) = &mut self.answer {
            let (head, body) = response.await.map_err(|error| lost(self.peer, &error))?.into_parts();
            if body.is_end_stream() {
                self.answer = CallAnswer::Ended;
                return status::of(&head.headers).map(|()| None);
            }
            self.answer = CallAnswer::Begun(MessageReader::new(body, ANSWER_LIMIT_BYTES));
        }
        let CallAnswer::Begun(reader) = &mut self.answer else { return Ok(None) };
        if let Some(message) = reader.message().await? {
            return Ok(Some(message));
        }
        let trailers = reader.trailers().await?.unwrap_or_default();
        self.answer = CallAnswer::Ended;
        status::of(&trailers).map(|()| None)
    }
}

fn late(peer: &str, path: &str) -> Status {
    let message = format!("{peer} did not answer {path} within {} s", DEADLINE.as_secs());
    Status::new(Code::Unavailable, message)
}

fn request(path: &'static str, headers: &[(&'static str, String)]) -> Result<Request<()>, Status> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::builder()
        .scheme("http")
        .authority("localhost")
        .path_and_query(path)
        .build()
        .expect("the paths of calls are valid");
    let fixed = [(header::CONTENT_TYPE, "application/grpc"), (header::TE, "trailers")];
    let mut all: HeaderMap =
        fixed.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
    for (name, value) in headers {
        let value = HeaderValue::try_from(value).map_err(|error| {
            Status::new(Code::InvalidArgument, format!("{path}: {name}={value:?}: {error}"))
        })?;
        all.insert(HeaderName::from_static(name), value);
    }
    *request.headers_mut() = all;
    Ok(request)
}
