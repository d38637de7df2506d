//! The request to commit, as containerd 2.3 defines it: the one of `containerd-client` has no parent yet.

use std::collections::HashMap;

/// `containerd.services.snapshots.v1.CommitSnapshotRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CommitSnapshotRequest {
    /// The snapshotter's name in containerd's configuration.
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// What the snapshot is called from now on.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The active snapshot.
    #[prost(string, tag = "3")]
    pub key: String,
    /// Labels that replace those of the active snapshot.
    #[prost(map = "string, string", tag = "4")]
    pub labels: HashMap<String, String>,
    /// The parent of a snapshot that was made without one, to be unpacked at the same time as its parents.
    #[prost(string, tag = "5")]
    pub parent: String,
}
