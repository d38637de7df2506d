//! A worker that says anything, to a front that waits for chunks of it.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuse_daemon::process::fuzzing::hear(bytes));
