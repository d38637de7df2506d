//! The worker in a process of its own, without rights.
//!
//! ```text
//!   front's process (root)                                      worker's process (nobody, no files)
//!   Front ── Order ──> RemoteWorker ══ messages ══> serve ──> LocalWorker ──> backends
//!     ^                                                            │ decodes
//!     │ verify, write, set bit                                     v
//!   copy <──── read by its file ──────────────────────── shared memory (Arena)
//! ```
//!
//! A worker that is taken over can refuse bytes, but not change them: the front verifies a copy that nobody else can write
//! to, and believes no word of it. One that ends, hangs or talks nonsense is replaced, and asked for what the last one owed.

mod ask;
mod connection;
mod errand;
mod files;
mod filter;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod given;
mod guard;
mod hosts;
mod launch;
mod message;
mod names;
mod remote;
mod report;
mod serve;
mod shape;
mod sources;
mod supervise;
mod supplied;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use hosts::SourceHost;
pub use message::Guards;
pub use remote::{Condition, ProcessConfig, RemoteWorker};
pub use serve::{ServeError, serve};
pub(crate) use sources::SourceFigures;
