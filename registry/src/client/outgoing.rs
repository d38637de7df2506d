//! A request's body on its way out.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, timeout_at};

use super::lane::Lane;
use super::sockets::Sockets;

/// Request bodies go out in frames of this size, each of which counts as progress.
const FRAME_BYTES: usize = 128 << 10;

/// How often it is looked at least how much of a request the kernel still has, and in which part of the time in which something has to move.
const LOOK: Duration = Duration::from_secs(1);
const LOOKS: u32 = 8;

/// How far a request is, so that a slow upload is no stall: the one place where something moves.
pub(super) struct Progress {
    moved: Mutex<Moved>,
    /// Where an upload's request goes, of which it is said there too.
    lane: Option<Arc<Lane>>,
}

struct Moved {
    /// When the request began, or its last byte moved.
    last: Instant,
    /// Whether all of it is written.
    is_written: bool,
    /// What of it the kernel still has, as far as that is known.
    unacknowledged: u64,
}

impl Progress {
    /// Of a request that begins now.
    pub(super) fn begin(is_written: bool, lane: Option<Arc<Lane>>) -> Self {
        if let Some(lane) = &lane {
            lane.silence.attempt();
        }
        Self { moved: Mutex::new(Moved { last: Instant::now(), is_written, unacknowledged: 0 }), lane }
    }

    /// Waits for `answer` until nothing has moved for so long, which is the error: `sending` while the request goes out on one of `sockets`,
    /// `answering` after that.
    pub(super) async fn watch<T>(
        &self,
        answer: impl Future<Output = T>,
        sockets: Option<&Sockets>,
        sending: Duration,
        answering: Duration,
    ) -> Result<T, Duration> {
        let mut answer = std::pin::pin!(answer);
        let look = (sending.min(answering) / LOOKS).min(LOOK);
        loop {
            let (_, mut until) = self.deadline(sending, answering);
            if sockets.is_some() {
                until = until.min(Instant::now() + look);
            }
            if let Ok(answer) = timeout_at(until, &mut answer).await {
                self.moved(true);
                return Ok(answer);
            }
            if let Some(sockets) = sockets {
                self.unacknowledged(sockets.unacknowledged().await);
            }
            let (silence, deadline) = self.deadline(sending, answering);
            if deadline <= Instant::now() {
                return Err(silence);
            }
        }
    }

    /// How long nothing may move now, and until when.
    fn deadline(&self, sending: Duration, answering: Duration) -> (Duration, Instant) {
        let moved = self.lock();
        let is_sent = moved.is_written && moved.unacknowledged == 0;
        let patience = if is_sent { answering } else { sending };
        (patience, moved.last + patience)
    }

    fn moved(&self, is_written: bool) {
        let mut moved = self.lock();
        (moved.last, moved.is_written) = (Instant::now(), is_written);
        if let Some(lane) = &self.lane {
            lane.silence.moved();
        }
    }

    /// The kernel has so many bytes that have not arrived.
    fn unacknowledged(&self, bytes: u64) {
        let mut moved = self.lock();
        if moved.unacknowledged != bytes {
            (moved.last, moved.unacknowledged) = (Instant::now(), bytes);
            if let Some(lane) = &self.lane {
                lane.silence.moved();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Moved> {
        self.moved.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A request body that says how far it is.
pub(super) struct Watched {
    pub(super) data: Bytes,
    pub(super) progress: Arc<Progress>,
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.data.is_empty() {
            return Poll::Ready(None);
        }
        let size = self.data.len().min(FRAME_BYTES);
        let frame = self.data.split_to(size);
        self.progress.moved(self.data.is_empty());
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.len() as u64)
    }
}
