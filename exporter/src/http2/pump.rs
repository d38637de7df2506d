//! One direction of a stream: data and trailers go on as they come, as fast as the receiver takes them.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use crate::grpc::{Code, Status};

/// How much of what has come goes on as one piece. buildkitd's tar streams come in frames of 4 KiB and less, and each frame costs
/// the receiver the hand-over between two threads, which is more than a copy here.
const PIECE_BYTES: usize = 64 << 10;

/// Why a direction stopped before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PumpError {
    /// The sending side reset the stream or is gone.
    #[error("the sender broke off: {0}")]
    Source(h2::Error),
    /// The receiving side reset the stream.
    #[error("the receiver stopped the stream: {0}")]
    Stopped(Reason),
    /// The receiving side is gone.
    #[error("the receiver is gone: {0}")]
    Sink(h2::Error),
}

impl PumpError {
    /// What the other end of the stream shall be reset with.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Stopped(reason) => *reason,
            Self::Source(error) | Self::Sink(error) => error.reason().unwrap_or(Reason::CANCEL),
        }
    }

    /// The status for an RPC that we serve ourselves.
    pub(crate) fn status(&self) -> Status {
        Status::new(Code::Cancelled, self.to_string())
    }
}

/// Sends everything of `from` to `to`, trailers included; `to` is closed by that.
pub(crate) async fn pump(from: &mut RecvStream, to: &mut SendStream<Bytes>) -> Result<(), PumpError> {
    while let Some(data) = until_reset(to, poll_fn(|cx| poll_piece(from, cx))).await? {
        let data = data.map_err(PumpError::Source)?;
        let length = data.len();
        let sent = send(to, data).await;
        // Released also where sending failed: the connection's window is shared with all other streams.
        let released = from.flow_control().release_capacity(length);
        sent?;
        released.map_err(PumpError::Source)?;
    }
    let trailers = until_reset(to, from.trailers()).await?.map_err(PumpError::Source)?;
    match trailers {
        Some(trailers) => to.send_trailers(trailers),
        None => to.send_data(Bytes::new(), true),
    }
    .map_err(PumpError::Sink)
}

/// The data that has come, up to a piece; `None` at the end of it.
fn poll_piece(from: &mut RecvStream, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
    let first = match ready!(from.poll_data(cx)) {
        Some(Ok(first)) => first,
        ended => return Poll::Ready(ended),
    };
    let mut length = first.len();
    let mut frames = vec![first];
    // An end or an error is there for the next call as well.
    while length < PIECE_BYTES
        && let Poll::Ready(Some(Ok(frame))) = from.poll_data(cx)
    {
        length += frame.len();
        frames.push(frame);
    }
    let piece = match frames.len() {
        1 => frames.swap_remove(0),
        _ => frames.concat().into(),
    };
    Poll::Ready(Some(Ok(piece)))
}

/// Sends `data` as the receiver's windows open, in parts if need be.
pub(crate) async fn send(to: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), PumpError> {
    while !data.is_empty() {
        let part = poll_fn(|cx| poll_send(to, &mut data, cx));
        part.await?;
    }
    Ok(())
}

/// Sends as much of `data` as the windows allow now, at least one byte.
pub(crate) fn poll_send(
    to: &mut SendStream<Bytes>,
    data: &mut Bytes,
    cx: &mut Context<'_>,
) -> Poll<Result<(), PumpError>> {
    to.reserve_capacity(data.len());
    let capacity = loop {
        // What was assigned before is not announced again: look before waiting.
        let capacity = to.capacity();
        if capacity > 0 {
            break capacity;
        }
        match ready!(to.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(sink_error(error))),
            None => {
                // The stream is closed for sending; its reset says why.
                let reason = ready!(to.poll_reset(cx)).unwrap_or(Reason::CANCEL);
                return Poll::Ready(Err(PumpError::Stopped(reason)));
            }
        }
    };
    let part = data.split_to(capacity.min(data.len()));
    Poll::Ready(to.send_data(part, false).map_err(sink_error))
}

fn sink_error(error: h2::Error) -> PumpError {
    match error.reason() {
        Some(reason) if error.is_reset() => PumpError::Stopped(reason),
        _ => PumpError::Sink(error),
    }
}

/// The result of `future`, unless the receiver resets the stream before.
pub(crate) async fn until_reset<T>(
    to: &mut SendStream<Bytes>,
    future: impl Future<Output = T>,
) -> Result<T, PumpError> {
    tokio::select! {
        biased;
        reset = poll_fn(|cx| to.poll_reset(cx)) => Err(match reset {
            Ok(reason) => PumpError::Stopped(reason),
            Err(error) => sink_error(error),
        }),
        result = future => Ok(result),
    }
}
