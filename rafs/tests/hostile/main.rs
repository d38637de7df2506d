//! Hostile bytes lead to errors: no panic, no endless loop, no memory beyond what the bytes are worth.
//!
//! What is made here is as bad as it can be made within a megabyte. What is asserted is memory rather than time, as far as
//! it goes: what allocates little does little. Time has one bound for all, far above what a slow machine needs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../it/support/mod.rs"]
mod support;

mod allocator;
mod archives;
mod bootstraps;
mod chunk_info;
mod mutation;
mod raw;

pub(crate) use allocator::alone;

use std::io;
use std::time::{Duration, Instant};

/// Optimised, all of this takes less than a second each.
const PATIENCE: Duration = Duration::from_secs(120);

/// Takes what is written and forgets it.
pub(crate) struct Sink;

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Does something that may take `peak` bytes of memory at a time, and `total` in all.
pub(crate) fn within<T>(peak: usize, total: usize, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let (result, used) = allocator::measure(work);
    let took = started.elapsed();
    assert!(used.peak <= peak, "{} bytes at a time; expected at most {peak}", used.peak);
    assert!(used.total <= total, "{} bytes in all; expected at most {total}", used.total);
    assert!(took < PATIENCE, "took {took:?}");
    result
}
