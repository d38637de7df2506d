//! The daemon with real mounts: images built from tar streams, served from a directory or the embedded registry, read
//! through the kernel.
//!
//! Needs root and `/dev/fuse`. Where these are missing, tests say `skipped: needs …`; with `CI=true` they fail instead.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests: what they cannot do fails the test")]

mod chunk_info;
mod control;
mod disk;
mod far;
mod faults;
mod handed_over;
mod image;
mod kernel;
mod log;
mod make;
mod own_sources;
mod prefetch;
mod shared;
mod summary;
mod tree;

use std::time::{Duration, Instant};

use test_support::Need;

/// What a test may take at most for something that is expected to happen at once.
const SOON: Duration = Duration::from_secs(20);

/// Whether FUSE mounts can be made here; says so if not.
fn can_mount() -> bool {
    test_support::has(&[Need::Fuse])
}

/// Waits until `condition` holds.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < end, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
