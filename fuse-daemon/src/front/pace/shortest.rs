//! The shortest time of some minutes.

use std::time::{Duration, Instant};

/// How long an answer counts, at least; twice as long at most. Nodes are busy for minutes when a cluster starts, and a
/// registry moves away seldom.
const LATENCY_WINDOW: Duration = Duration::from_secs(300);

/// The shortest time of this window and of the one before.
#[derive(Debug)]
pub(super) struct Shortest {
    since: Instant,
    now: Duration,
    before: Duration,
}

impl Shortest {
    pub(super) fn new(latency: Duration, at: Instant) -> Self {
        Self { since: at, now: latency, before: latency }
    }

    pub(super) fn note(&mut self, latency: Duration, at: Instant) {
        if at.saturating_duration_since(self.since) >= LATENCY_WINDOW {
            *self = Self { since: at, now: latency, before: self.now };
        }
        self.now = self.now.min(latency);
    }

    pub(super) fn get(&self) -> Duration {
        self.now.min(self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_for_some_minutes() {
        let begin = Instant::now();
        let mut shortest = Shortest::new(Duration::from_millis(1), begin);
        let after = |seconds| begin + Duration::from_secs(seconds);
        let late = Duration::from_millis(50);
        shortest.note(late, after(301));
        assert_eq!(shortest.get(), Duration::from_millis(1));
        shortest.note(late, after(602));
        assert_eq!(shortest.get(), late);
    }
}
