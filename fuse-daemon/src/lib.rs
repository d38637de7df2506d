//! The node's data plane: FUSE mounts, chunk cache, backends.
//!
//! ```text
//! control ──> mounts ──> fuse ──> fs ──> front ═══ worker ──> backend (registry, directory)
//!                                          │
//!                                        cache
//! ```
//!
//! The kernel waits on what is left of the double line. It does no network and no decoding; messages
//! ([`front::Order`], [`front::Content`]) divide it from what may fail. In the daemon the double line is between two
//! processes: [`process`].

#![deny(unsafe_code)]

mod access;
mod buffers;
pub mod cache;
pub mod control;
pub mod daemon;
pub mod errno;
pub mod front;
pub mod fs;
mod fuse;
mod metrics;
#[cfg(all(test, feature = "model"))]
mod model;
pub mod mounts;
mod pool;
pub mod prefetch;
pub mod process;
mod sync;
mod sys;
mod upgrade;
pub mod worker;

pub use daemon::{
    DaemonConfig, DaemonError, ForegroundMount, JournalUse, PrefetchSettings, ReadConfig, mount_foreground,
    probe, serve,
};
pub use fuse::{JournalConfig, Rights};
use service::describe;
pub use upgrade::{Probe, UpgradeError};
