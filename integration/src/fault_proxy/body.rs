//! Bodies of answers and uploads that go wrong on their way.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep};

/// How often a paced body sends: often enough to look like a slow line rather than like pauses.
const TICK: Duration = Duration::from_millis(20);

/// The next piece of data, of which `take` says how much may pass. What is no data passes as it is.
fn limited<B: Body<Data = Bytes> + Unpin>(
    body: &mut B,
    context: &mut Context<'_>,
    take: impl FnOnce(Bytes) -> Bytes,
) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
    let frame = ready!(Pin::new(body).poll_frame(context));
    Poll::Ready(frame.map(|frame| {
        frame.map(|frame| match frame.into_data() {
            Ok(data) => Frame::data(take(data)),
            Err(other) => other,
        })
    }))
}

/// At most `left` bytes of `data`, which are counted.
fn at_most(left: &mut u64, mut data: Bytes) -> Bytes {
    let passed = usize::try_from(*left).unwrap_or(usize::MAX).min(data.len());
    *left -= passed as u64;
    data.split_to(passed)
}

/// A body that closes the client's connection after some bytes.
pub(super) struct CutAfter<B> {
    pub(super) body: B,
    pub(super) left: u64,
    pub(super) cut: Arc<watch::Sender<bool>>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for CutAfter<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { body, left, cut } = self.get_mut();
        if *left == 0 {
            cut.send_replace(true);
            return Poll::Pending;
        }
        limited(body, context, |data| at_most(left, data))
    }
}

/// A body that stops after some bytes, without an end.
pub(super) struct StallAfter<B> {
    pub(super) body: B,
    pub(super) left: u64,
}

impl<B: Body<Data = Bytes> + Unpin> Body for StallAfter<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { body, left } = self.get_mut();
        if *left == 0 {
            return Poll::Pending;
        }
        limited(body, context, |data| at_most(left, data))
    }
}

/// A body with a wrong byte in each piece.
pub(super) struct Altered<B> {
    pub(super) body: B,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Altered<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        limited(&mut self.get_mut().body, context, |data| {
            let mut data = BytesMut::from(data.as_ref());
            let middle = data.len() / 2;
            if let Some(byte) = data.get_mut(middle) {
                *byte ^= 0x55;
            }
            data.freeze()
        })
    }
}

/// A body that comes at a rate.
pub(super) struct Paced<B> {
    body: B,
    /// Bytes that may pass at once.
    portion: usize,
    waiting: Bytes,
    next: Pin<Box<Sleep>>,
}

impl<B> Paced<B> {
    pub(super) fn new(body: B, bytes_per_second: u64) -> Self {
        let portion = u128::from(bytes_per_second) * TICK.as_millis() / 1000;
        let portion = usize::try_from(portion).unwrap_or(usize::MAX).max(1);
        Self { body, portion, waiting: Bytes::new(), next: Box::pin(sleep(Duration::ZERO)) }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Paced<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { body, portion, waiting, next } = self.get_mut();
        while waiting.is_empty() {
            match ready!(Pin::new(&mut *body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => *waiting = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                other => return Poll::Ready(other),
            }
        }
        ready!(next.as_mut().poll(context));
        next.as_mut().reset(Instant::now() + TICK);
        Poll::Ready(Some(Ok(Frame::data(waiting.split_to((*portion).min(waiting.len()))))))
    }
}
