//! The processes of the roles as an operating system sees them: their logs, sockets, signals and deaths.
//!
//! Most need root and `/dev/fuse`. Where these are missing, tests say `skipped: needs …`; with `CI=true` they fail instead.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests: what they cannot do fails the test")]

mod addresses;
mod cache;
mod clusters;
mod dying;
mod flags;
mod image_mount;
mod kill;
mod limits;
mod load;
mod log;
mod looks;
mod manager;
mod memory;
mod merged;
mod metrics;
mod node;
mod packages;
mod registry;
mod silent;
mod status;
mod upgrade;
mod worker;

use std::time::{Duration, Instant};

use test_support::Need;

/// What a test may take at most for something that is expected to happen at once.
const SOON: Duration = Duration::from_secs(30);

/// Whether FUSE mounts can be made here; says so if not.
fn can_mount() -> bool {
    test_support::has(&[Need::Fuse])
}

/// Waits until there is a result.
fn eventually<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(result) = poll() {
            return result;
        }
        assert!(Instant::now() < end, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
