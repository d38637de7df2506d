//! Logs of failed reads, a line a second at most: a program that retries, or the kernel for it, fails thousands of
//! times in the same way.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::fs::FsError;

const PERIOD: Duration = Duration::from_secs(1);

/// When the last line was logged, and how many were left out since.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<(Option<Instant>, u64)>);

impl Failures {
    pub(super) fn log(&self, ino: u64, offset: u64, error: &FsError) {
        if let Some(left_out) = self.next(Instant::now()) {
            tracing::error!(ino, offset, left_out, %error, "read fails");
        }
    }

    /// How many were left out before this one, unless it is to be left out as well.
    fn next(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, left_out) = &mut *state;
        if last.is_some_and(|last| now.saturating_duration_since(last) < PERIOD) {
            *left_out += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_a_second_is_logged_and_the_others_are_counted() {
        let (failures, start) = (Failures::default(), Instant::now());
        let after = |milliseconds| failures.next(start + Duration::from_millis(milliseconds));
        assert_eq!([0, 1, 999, 1000, 1001, 2001].map(after), [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
