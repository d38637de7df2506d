//! The node's data plane: FUSE mounts, chunk cache, backends.
//!
//! ```text
//! control ──> mounts ──> fuse ──> fs ──> front ═══ worker ──> backend (registry, directory)
//!                                          │          │
//!                                          └── cache ─┘
//! ```
//!
//! The kernel waits on what is left of the double line. It does no network and no decoding; a trait and a queue
//! ([`front::Worker`]) divide it from what may fail.

#![deny(unsafe_code)]

pub mod cache;
pub mod control;
pub mod daemon;
pub mod errno;
pub mod front;
pub mod fs;
mod fuse;
pub mod mounts;
pub mod worker;

pub use daemon::{DaemonConfig, DaemonError, ForegroundMount, ReadConfig, mount_foreground, serve};
