//! A call of one message and one answer that passes through, with something done before or after.

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::{HeaderMap, Request, Response, request, response};

use super::forward::{lost, open, until_reset};
use super::pump::{self, PumpError};
use super::respond;
use crate::grpc::frame::{self, MessageReader};
use crate::grpc::{Code, Status, status};

/// The largest answer taken: four times what buildkitd's clients take.
const ANSWER_LIMIT_BYTES: usize = 64 << 20;

/// A response as it came: head, message, trailers.
pub(crate) struct Answer {
    head: response::Parts,
    pub(crate) message: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Answer {
    /// Whether the call succeeded.
    pub(crate) fn is_ok(&self) -> bool {
        status::is_ok(self.trailers.as_ref().unwrap_or(&self.head.headers))
    }
}

/// Why there is no answer.
pub(crate) enum Failed {
    /// The caller gave up.
    Cancelled(Reason),
    /// buildkitd reset the stream.
    Reset(Reason),
    /// We say no.
    Ours(Status),
}

/// Sends a request of one message and takes its answer.
pub(crate) async fn call(
    parts: request::Parts,
    message: &[u8],
    upstream: SendRequest<Bytes>,
    peer: &str,
    downstream: &mut SendResponse<Bytes>,
) -> Result<Answer, Failed> {
    let gone = |error: &h2::Error| match error.reason() {
        Some(reason) if error.is_reset() => Failed::Reset(reason),
        _ => Failed::Ours(lost(peer, error)),
    };
    let opened = open(Request::from_parts(parts, ()), false, upstream).await;
    let (response, mut send) = opened.map_err(|error| gone(&error))?;
    let answer = async {
        send_request(&mut send, message).await?;
        let response = response.await.map_err(|error| gone(&error))?;
        read_answer(response, peer).await
    };
    match until_reset(downstream, answer).await {
        Ok(Err(Failed::Ours(status))) if status.code == Code::Cancelled => {
            Err(Failed::Reset(Reason::INTERNAL_ERROR))
        }
        Ok(answer) => answer,
        Err(error) => {
            send.send_reset(error.reason());
            Err(Failed::Cancelled(error.reason()))
        }
    }
}

async fn send_request(send: &mut SendStream<Bytes>, message: &[u8]) -> Result<(), Failed> {
    let sent = match pump::send(send, frame::encode(message)).await {
        Ok(()) => send.send_data(Bytes::new(), true).map_err(PumpError::Sink),
        failed => failed,
    };
    match sent {
        // An early answer ends the request; it says what there is to say.
        Ok(()) | Err(PumpError::Stopped(Reason::NO_ERROR)) => Ok(()),
        Err(error) => Err(Failed::Ours(error.status())),
    }
}

async fn read_answer(response: Response<h2::RecvStream>, peer: &str) -> Result<Answer, Failed> {
    let (head, body) = response.into_parts();
    if body.is_end_stream() {
        return Ok(Answer { head, message: None, trailers: None });
    }
    let mut reader = MessageReader::new(body, ANSWER_LIMIT_BYTES);
    let lost = |status: Status| Failed::Ours(status.told_by(peer));
    let message = reader.message().await.map_err(lost)?;
    let trailers = reader.trailers().await.map_err(lost)?;
    Ok(Answer { head, message, trailers })
}

/// Answers the caller.
pub(crate) async fn deliver(downstream: &mut SendResponse<Bytes>, ended: Result<Answer, Failed>) {
    let answer = match ended {
        Ok(answer) => answer,
        Err(Failed::Ours(status)) => return respond::refuse(downstream, &status),
        Err(Failed::Reset(reason)) => return downstream.send_reset(reason),
        Err(Failed::Cancelled(reason)) => {
            tracing::info!(%reason, "build cancelled by its client");
            return downstream.send_reset(reason);
        }
    };
    let bare = answer.message.is_none() && answer.trailers.is_none();
    let sent = async {
        let mut send =
            downstream.send_response(Response::from_parts(answer.head, ()), bare).map_err(PumpError::Sink)?;
        if let Some(message) = &answer.message {
            pump::send(&mut send, frame::encode(message)).await?;
        }
        match answer.trailers {
            Some(trailers) => send.send_trailers(trailers).map_err(PumpError::Sink),
            None if !bare => send.send_data(Bytes::new(), true).map_err(PumpError::Sink),
            None => Ok(()),
        }
    };
    if let Err(error) = sent.await {
        tracing::debug!(%error, "the caller left before the answer");
    }
}
