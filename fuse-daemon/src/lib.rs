//! The node's data plane: FUSE mounts, chunk cache, backends, prefetch.

pub mod control;
