//! Bodies of answers and uploads that go wrong on their way.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep};

/// How often a paced body sends: often enough to look like a slow line rather than like pauses.
const TICK: Duration = Duration::from_millis(20);

/// At most `left` bytes of `data`, which are counted.
fn at_most(left: &mut u64, mut data: Bytes) -> Bytes {
    let passed = usize::try_from(*left).unwrap_or(usize::MAX).min(data.len());
    *left -= passed as u64;
    data.split_to(passed)
}

/// A body that stops after some bytes, without an end.
pub(super) struct Limited<B> {
    body: B,
    left: u64,
    /// Told then, to close the client's connection.
    cut: Option<Arc<watch::Sender<bool>>>,
}

impl<B> Limited<B> {
    /// One after which nothing more happens.
    pub(super) fn stalling(body: B, bytes: u64) -> Self {
        Self { body, left: bytes, cut: None }
    }

    /// One after which the connection is closed.
    pub(super) fn cutting(body: B, bytes: u64, cut: Arc<watch::Sender<bool>>) -> Self {
        Self { body, left: bytes, cut: Some(cut) }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Limited<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { body, left, cut } = self.get_mut();
        if *left == 0 {
            if let Some(cut) = cut {
                cut.send_replace(true);
            }
            return Poll::Pending;
        }
        let frame = ready!(Pin::new(body).poll_frame(context));
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|data| at_most(left, data)))))
    }
}

/// A piece of a body with a wrong byte.
pub(super) fn altered(piece: Frame<Bytes>) -> Frame<Bytes> {
    piece.map_data(|data| {
        let mut data = BytesMut::from(data.as_ref());
        let middle = data.len() / 2;
        if let Some(byte) = data.get_mut(middle) {
            *byte ^= 0x55;
        }
        data.freeze()
    })
}

/// A body that comes at a rate.
pub(super) struct Paced<B> {
    body: B,
    /// Bytes that may pass at once.
    portion: usize,
    waiting: Bytes,
    /// Whether there was nothing to send: a line does not make up for that.
    idle: bool,
    next: Pin<Box<Sleep>>,
}

impl<B> Paced<B> {
    pub(super) fn new(body: B, bytes_per_second: u64) -> Self {
        let portion = u128::from(bytes_per_second) * TICK.as_millis() / 1000;
        let portion = usize::try_from(portion).unwrap_or(usize::MAX).max(1);
        Self { body, portion, waiting: Bytes::new(), idle: true, next: Box::pin(sleep(Duration::ZERO)) }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Paced<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { body, portion, waiting, idle, next } = self.get_mut();
        while waiting.is_empty() {
            let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(context) else {
                *idle = true;
                return Poll::Pending;
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => *waiting = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                other => return Poll::Ready(other),
            }
        }
        if std::mem::take(idle) {
            let due = next.deadline().max(Instant::now());
            next.as_mut().reset(due);
        }
        ready!(next.as_mut().poll(context));
        // From when it was due, not from when it was sent: on a busy machine, which is late each time, the line keeps its rate.
        let due = next.deadline() + TICK;
        next.as_mut().reset(due);
        Poll::Ready(Some(Ok(Frame::data(waiting.split_to((*portion).min(waiting.len()))))))
    }
}

/// What a line sends ahead of its rate: more than timers are late.
const AHEAD: Duration = Duration::from_millis(4);

/// A line that bodies share.
#[derive(Debug)]
pub(super) struct Line(Mutex<Instant>);

impl Line {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    /// When so many more bytes may pass.
    fn take(&self, bytes: usize, bytes_per_second: u64) -> Instant {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *free = (*free).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
        *free - AHEAD
    }
}

/// A body that comes over such a line.
pub(super) struct OverLine<B> {
    body: B,
    line: Arc<Line>,
    bytes_per_second: u64,
    waiting: Option<Frame<Bytes>>,
    next: Pin<Box<Sleep>>,
}

impl<B> OverLine<B> {
    pub(super) fn new(body: B, line: Arc<Line>, bytes_per_second: u64) -> Self {
        Self { body, line, bytes_per_second, waiting: None, next: Box::pin(sleep(Duration::ZERO)) }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for OverLine<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { body, line, bytes_per_second, waiting, next } = self.get_mut();
        if waiting.is_none() {
            match ready!(Pin::new(&mut *body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    let bytes = frame.data_ref().map_or(0, Bytes::len);
                    next.as_mut().reset(line.take(bytes, *bytes_per_second));
                    *waiting = Some(frame);
                }
                other => return Poll::Ready(other),
            }
        }
        ready!(next.as_mut().poll(context));
        Poll::Ready(waiting.take().map(Ok))
    }
}
