//! A request's body on its way out.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;

/// Request bodies go out in frames of this size, each of which counts as progress.
const FRAME_BYTES: usize = 128 << 10;

/// How far a request is, so that a slow upload is no stall.
pub(super) struct Progress(Mutex<Moved>);

struct Moved {
    /// When the request began, or its last byte moved.
    last: Instant,
    /// Whether all of it is out.
    is_sent: bool,
}

impl Progress {
    /// Of a request that begins now.
    pub(super) fn begin(is_sent: bool) -> Self {
        Self(Mutex::new(Moved { last: Instant::now(), is_sent }))
    }

    /// How long nothing may move now, and until when: `sending` while the request goes out, `answering` after that.
    pub(super) fn deadline(&self, sending: Duration, answering: Duration) -> (Duration, Instant) {
        let moved = self.lock();
        let patience = if moved.is_sent { answering } else { sending };
        (patience, moved.last + patience)
    }

    fn moved(&self, is_sent: bool) {
        *self.lock() = Moved { last: Instant::now(), is_sent };
    }

    fn lock(&self) -> MutexGuard<'_, Moved> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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
