//! The node's data plane: FUSE mounts, chunk cache, backends, prefetch.

pub mod cache;
pub mod control;
pub mod front;
pub mod worker;
