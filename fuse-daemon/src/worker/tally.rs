//! What became of the requests to a backend, for whoever looks at the node.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use serde::{Deserialize, Serialize};

use super::backend::BackendError;
use super::totals::{FailureCause, HostCounters};

/// Characters of an error that are kept: those of as many backends as are asked about at once have to fit into one message.
pub(crate) const REASON_LIMIT: usize = 256;

/// What a worker says of a backend. Times are in milliseconds, until it says so.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceReport {
    pub(crate) requests: u64,
    pub(crate) failures: u64,
    pub(crate) bytes: u64,
    /// Whether the request that ended last was answered, if one has ended.
    pub(crate) is_answered: Option<bool>,
    /// Since the last answer.
    pub(crate) answered_ms: Option<u64>,
    /// Since the last failure.
    pub(crate) failed_ms: Option<u64>,
    /// Why that was.
    pub(crate) reason: Option<String>,
    /// Since when nothing has come, if requests have waited too long for that.
    pub(crate) silent_ms: Option<u64>,
}

/// What became of the requests to one backend.
#[derive(Debug)]
pub(super) struct Tally {
    /// A backend from which nothing comes for so long does not answer.
    patience: Duration,
    /// Where the same is counted of all backends of its host.
    host: Arc<HostCounters>,
    inner: Mutex<TallyState>,
}

#[derive(Debug, Default)]
struct TallyState {
    requests: u64,
    failures: u64,
    bytes: u64,
    is_answered: Option<bool>,
    answered: Option<Instant>,
    failed: Option<(Instant, String)>,
    /// Requests whose next bytes have not come.
    waiting: usize,
    /// When something came last, or the first of those began to wait.
    moved: Option<Instant>,
}

impl Tally {
    pub(super) fn new(patience: Duration, host: Arc<HostCounters>) -> Arc<Self> {
        Arc::new(Self { patience, host, inner: Mutex::default() })
    }

    /// A request is sent.
    pub(super) fn begin(self: &Arc<Self>) -> SourceRequest {
        self.lock().requests += 1;
        self.host.requested();
        let tally = Arc::clone(self);
        SourceRequest { tally, asked: None, is_heard: false, waits_since: None, is_over: false }
    }

    /// Counts an answer of `bytes` bytes while it comes.
    pub(super) fn follow(self: &Arc<Self>, answer: AnswerStream, bytes: u64) -> AnswerStream {
        Followed { answer, request: self.begin(), left: bytes }.boxed()
    }

    /// All of it, now.
    pub(super) fn report(&self) -> SourceReport {
        let now = Instant::now();
        let ago =
            |at: Instant| u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX);
        let inner = self.lock();
        let silent = inner.moved.filter(|moved| inner.waiting > 0 && moved.elapsed() >= self.patience);
        SourceReport {
            requests: inner.requests,
            failures: inner.failures,
            bytes: inner.bytes,
            is_answered: inner.is_answered,
            answered_ms: inner.answered.map(ago),
            failed_ms: inner.failed.as_ref().map(|(at, _)| ago(*at)),
            reason: inner.failed.as_ref().map(|(_, reason)| reason.clone()),
            silent_ms: silent.map(ago),
        }
    }

    fn lock(&self) -> MutexGuard<'_, TallyState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is under way. One that is given up has failed if nothing had come for too long, and has no outcome else: another
/// backend was faster.
pub(super) struct SourceRequest {
    tally: Arc<Tally>,
    /// When it was sent.
    asked: Option<Instant>,
    /// Whether something has come.
    is_heard: bool,
    waits_since: Option<Instant>,
    is_over: bool,
}

impl SourceRequest {
    /// It is sent now, unless it was.
    fn asks(&mut self) {
        self.asked.get_or_insert_with(Instant::now);
    }

    /// Whoever sent it waits for what comes next.
    pub(super) fn waits(&mut self) {
        self.asks();
        // Who has all of it may look for its end.
        if self.is_over || self.waits_since.is_some() {
            return;
        }
        let now = Instant::now();
        self.waits_since = Some(now);
        let mut inner = self.tally.lock();
        if inner.waiting == 0 {
            inner.moved = Some(now);
        }
        inner.waiting += 1;
    }

    /// Something has come of it, if that is the first.
    fn hears(&mut self) {
        if let (Some(asked), false) = (self.asked, std::mem::replace(&mut self.is_heard, true)) {
            self.tally.host.answered(asked.elapsed());
        }
    }

    fn came(&mut self, bytes: usize) {
        self.hears();
        self.tally.host.came(bytes);
        let mut inner = self.tally.lock();
        inner.bytes = inner.bytes.saturating_add(bytes as u64);
        inner.moved = Some(Instant::now());
        inner.waiting -= usize::from(self.waits_since.take().is_some());
    }

    /// It was answered, or was not; what is said first counts.
    pub(super) fn over(&mut self, outcome: Result<(), (FailureCause, &dyn std::fmt::Display)>) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        match outcome {
            Ok(()) => self.hears(),
            Err((cause, _)) => self.tally.host.failed(cause),
        }
        let now = Instant::now();
        let mut inner = self.tally.lock();
        inner.waiting -= usize::from(self.waits_since.take().is_some());
        inner.is_answered = Some(outcome.is_ok());
        match outcome {
            Ok(()) => (inner.answered, inner.moved) = (Some(now), Some(now)),
            Err((_, reason)) => {
                inner.failures += 1;
                inner.failed = Some((now, reason.to_string().chars().take(REASON_LIMIT).collect()));
            }
        }
    }
}

impl Drop for SourceRequest {
    fn drop(&mut self) {
        let waited = self.waits_since.map(|since| since.elapsed());
        match waited.filter(|waited| *waited >= self.tally.patience) {
            Some(waited) => {
                let reason = format!("no answer for {:.1} s", waited.as_secs_f64());
                self.over(Err((FailureCause::Silent, &reason)));
            }
            None => self.tally.lock().waiting -= usize::from(waited.is_some()),
        }
    }
}

/// What a backend answers, as it comes.
pub(super) type AnswerStream = BoxStream<'static, Result<Bytes, BackendError>>;

/// An answer, with the request that it is one to.
struct Followed {
    answer: AnswerStream,
    request: SourceRequest,
    /// Bytes that are still to come: who has them all asks for no end.
    left: u64,
}

impl Stream for Followed {
    type Item = Result<Bytes, BackendError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        this.request.asks();
        let polled = this.answer.as_mut().poll_next(context);
        match &polled {
            Poll::Pending => this.request.waits(),
            Poll::Ready(Some(Ok(bytes))) => {
                this.request.came(bytes.len());
                this.left = this.left.saturating_sub(bytes.len() as u64);
                if this.left == 0 {
                    this.request.over(Ok(()));
                }
            }
            Poll::Ready(Some(Err(error))) => {
                this.request.over(Err((error.cause(), &crate::describe(error))));
            }
            Poll::Ready(None) if this.left > 0 => {
                this.request.over(Err((FailureCause::Other, &"the answer ended early")));
            }
            Poll::Ready(None) => this.request.over(Ok(())),
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3600);

    fn answer(pieces: Vec<Result<&'static str, &str>>) -> AnswerStream {
        let piece = |piece: Result<&'static str, &str>| match piece {
            Ok(bytes) => Ok(Bytes::from_static(bytes.as_bytes())),
            Err(reason) => Err(BackendError::Unusable(reason.to_owned())),
        };
        futures::stream::iter(pieces.into_iter().map(piece).collect::<Vec<_>>()).boxed()
    }

    /// Reads so many pieces of an answer of ten bytes, and no further.
    fn read(tally: &Arc<Tally>, pieces: Vec<Result<&'static str, &str>>, number: usize) {
        let answer = tally.follow(answer(pieces), 10);
        futures::executor::block_on(answer.take(number).collect::<Vec<_>>());
    }

    #[test]
    fn an_answer_is_one_when_all_of_it_has_come_though_nobody_looks_for_its_end() {
        let tally = Tally::new(PATIENCE, Arc::default());
        assert_eq!(tally.report(), SourceReport::default());
        read(&tally, vec![Ok("12345"), Ok("67890"), Err("never read")], 2);
        let SourceReport { requests, failures, bytes, is_answered, failed_ms, .. } = tally.report();
        assert_eq!((requests, failures, bytes, is_answered, failed_ms), (1, 0, 10, Some(true), None));
    }

    #[test]
    fn the_last_outcome_counts_and_the_last_error_is_kept() {
        let tally = Tally::new(PATIENCE, Arc::default());
        let long = "x".repeat(10 * REASON_LIMIT);
        read(&tally, vec![Ok("12345"), Err(&long)], 9);
        let report = tally.report();
        assert_eq!((report.is_answered, report.answered_ms, report.failures), (Some(false), None, 1));
        assert_eq!(report.reason.unwrap().len(), REASON_LIMIT);
        read(&tally, vec![Ok("12345")], 9);
        assert_eq!(tally.report().reason.as_deref(), Some("the answer ended early"));
        read(&tally, vec![Ok("1234567890")], 9);
        let report = tally.report();
        assert_eq!((report.is_answered, report.failures, report.requests), (Some(true), 2, 3));
        assert!(report.answered_ms <= report.failed_ms && report.reason.is_some(), "{report:?}");
    }

    #[test]
    fn who_is_given_up_soon_has_not_failed_and_who_is_silent_for_long_has() {
        let pending = |tally: &Arc<Tally>| {
            let mut answer = tally.follow(futures::stream::pending().boxed(), 10);
            assert!(answer.next().now_or_never().is_none(), "nothing has come");
            answer
        };
        let (patient, hasty) =
            (Tally::new(PATIENCE, Arc::default()), Tally::new(Duration::ZERO, Arc::default()));
        let waits = pending(&patient);
        assert_eq!(patient.report().silent_ms, None);
        drop(waits);
        let report = patient.report();
        assert_eq!((report.requests, report.failures, report.is_answered), (1, 0, None));
        let waits = pending(&hasty);
        assert!(hasty.report().silent_ms.is_some());
        drop(waits);
        let report = hasty.report();
        assert_eq!((report.failures, report.is_answered, report.silent_ms), (1, Some(false), None));
        assert!(report.reason.unwrap().starts_with("no answer for 0."));
    }

    #[test]
    fn a_host_counts_the_requests_to_all_its_backends_also_of_those_that_are_gone() {
        let host = Arc::new(HostCounters::default());
        read(&Tally::new(PATIENCE, Arc::clone(&host)), vec![Ok("12345"), Ok("67890")], 2);
        let other = Tally::new(Duration::ZERO, Arc::clone(&host));
        read(&other, vec![Ok("12345"), Err("it broke")], 9);
        let mut silent = other.follow(futures::stream::pending().boxed(), 10);
        assert!(silent.next().now_or_never().is_none(), "nothing has come");
        drop((silent, other));
        let totals = host.totals();
        // Denied, missing, silent, other.
        assert_eq!((totals.requests, totals.failures), (3, [0, 0, 1, 1]));
        assert_eq!((totals.bytes, totals.answers.iter().sum::<u64>()), (15, 2), "{totals:?}");
    }
}
