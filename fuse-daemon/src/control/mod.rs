//! How the snapshotter and the command line talk to the daemon.
//!
//! One connection carries one request and its answer, each a line of JSON over a Unix socket. So a client holds no
//! state that a restart of the daemon could break, and slow requests do not delay others. A request says which versions of
//! the messages its sender speaks; the answer is of the newest that both ends do.

pub mod client;
pub mod protocol;
pub(crate) mod server;

pub use crate::fuse::Negotiated;
pub use client::{Client, ClientError};
pub use protocol::{
    BackendSpec, BadChunks, BlobId, BootstrapRequest, BootstrapSource, CachedStatus, Guards, HandedOut,
    Handover, Kept, LayerTree, MountRequest, MountStatus, Removed, Status, Verified, WorkerStatus,
};
