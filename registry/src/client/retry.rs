//! How often and when a failed request is sent again.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::config::Retries;
use super::error::{Error, Target};
use super::lane::Lane;

/// The attempts of one operation.
pub(super) struct Retry {
    limits: Retries,
    target: Target,
    attempt: u32,
    deadline: Option<(Instant, Duration)>,
    last: String,
    /// Counts those after the first, for whoever wants to know.
    counter: Option<Arc<AtomicU64>>,
    /// Where an upload's attempts are made.
    lane: Option<Arc<Lane>>,
}

impl Retry {
    /// Attempts without a deadline for all of them together: each is bounded by its idle deadline.
    pub(super) fn new(limits: &Retries, target: &Target) -> Self {
        Self {
            limits: limits.clone(),
            target: target.clone(),
            attempt: 1,
            deadline: None,
            last: String::new(),
            counter: None,
            lane: None,
        }
    }

    /// Attempts that end `after` from now.
    pub(super) fn within(limits: &Retries, target: &Target, after: Duration) -> Self {
        Self { deadline: Some((Instant::now() + after, after)), ..Self::new(limits, target) }
    }

    /// The same, with each attempt after the first counted in `counter`, if there is one.
    pub(super) fn counted(self, counter: Option<&Arc<AtomicU64>>) -> Self {
        Self { counter: counter.cloned(), ..self }
    }

    /// The same, which says on `lane` what comes of attempts there.
    pub(super) fn on(self, lane: &Arc<Lane>) -> Self {
        Self { lane: Some(Arc::clone(lane)), ..self }
    }

    /// The request is sent again, to the same host or to another.
    pub(super) fn repeats(&self) {
        if let Some(counter) = &self.counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Runs one attempt under the deadline.
    pub(super) async fn bound<T>(&self, attempt: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        match self.deadline {
            None => attempt.await,
            Some((at, after)) => match tokio::time::timeout_at(at, attempt).await {
                Ok(result) => result,
                Err(_) => Err(self.late(after)),
            },
        }
    }

    /// Waits before the next attempt, or gives `error` back if it will not go away by itself or came too often.
    pub(super) async fn pause(&mut self, error: Error) -> Result<(), Error> {
        if error.is_transient() { self.again(error).await } else { Err(error) }
    }

    /// Waits before the next attempt whatever `error` is, or gives it back if there were enough.
    pub(super) async fn again(&mut self, error: Error) -> Result<(), Error> {
        if self.attempt >= self.limits.attempts || matches!(error, Error::Deadline { .. }) {
            return Err(error);
        }
        let delay = delay(&self.limits, self.attempt, error.retry_after());
        tracing::warn!(attempt = self.attempt, ?delay, %error, "registry request failed, will be retried");
        self.last = format!("; last: {error}");
        if let Some((at, after)) = self.deadline
            && Instant::now() + delay >= at
        {
            return Err(self.late(after));
        }
        self.attempt += 1;
        self.repeats();
        if let Some(lane) = &self.lane {
            lane.silence.pause(delay);
        }
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// Something went forward: the next failure counts as the first again.
    pub(super) fn progressed(&mut self) {
        self.attempt = 1;
        if let Some(lane) = &self.lane {
            lane.silence.progressed();
        }
    }

    fn late(&self, after: Duration) -> Error {
        Error::Deadline { target: Box::new(self.target.clone()), after, last: self.last.clone() }
    }
}

/// Doubles with each attempt, less a random part up to half, so that clients of one registry spread out.
fn delay(limits: &Retries, attempt: u32, asked: Option<Duration>) -> Duration {
    let doubled = limits.first_delay.saturating_mul(1u32.checked_shl(attempt - 1).unwrap_or(u32::MAX));
    // RandomState is seeded from the system's randomness and enough for jitter.
    let random = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
    let jittered = doubled.min(limits.longest_delay).mul_f64(0.5 + random / 2.0);
    jittered.max(asked.unwrap_or_default()).min(limits.longest_delay)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_with_jitter_up_to_the_longest() {
        let limits = Retries::default();
        for (attempt, full) in [(1, 0.2), (2, 0.4), (3, 0.8), (30, 20.0), (60, 20.0)] {
            let got = delay(&limits, attempt, None).as_secs_f64();
            assert!(got >= full / 2.0 - 1e-9 && got <= full + 1e-9, "attempt {attempt}: {got}");
        }
    }

    #[test]
    fn retry_after_is_honoured_up_to_the_longest() {
        let limits = Retries::default();
        assert_eq!(delay(&limits, 1, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(delay(&limits, 1, Some(Duration::from_secs(7000))), limits.longest_delay);
    }
}
