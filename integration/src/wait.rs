//! Waiting for something to become true, with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at: short against what servers take to start, long against a look.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Polls `condition` until it yields a value, or fails once `deadline` has passed, naming `what`.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if start.elapsed() > deadline {
            bail!("{what}: not so within {deadline:?}");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// [`until`] for a plain yes or no.
pub fn until_true(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    until(what, deadline, || Ok(condition().then_some(())))
}
