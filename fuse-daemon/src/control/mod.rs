//! How the snapshotter and the command line talk to the daemon.
//!
//! How a request and its answer go over the socket is [`service::control`]'s; here is what they say, and what the daemon does.

pub mod client;
pub mod protocol;
pub(crate) mod server;
pub mod status;

pub use crate::fuse::Negotiated;
pub use client::{Client, ClientError};
pub use protocol::{
    BackendSpec, BadChunks, BlobId, BootstrapRequest, BootstrapSource, CachedStatus, HandedOut, Handover,
    Kept, LayerTree, MountRequest, Removed, Verified,
};
pub use status::{
    CacheTotals, Guards, MountStatus, MountSummary, SOURCES_LIMIT, SourceFailure, SourceState, SourceStatus,
    Status, Summary, Waiting, WorkerStatus,
};
