//! containerd's content service, in which blobs go three ways: buildkitd writes them to us, we read them from it, and we write them to a
//! client.

use bytes::Bytes;
use prost::Message;

/// The service, with the slash after it.
pub(crate) const SERVICE: &str = "/containerd.services.content.v1.Content/";
/// Says whether a blob is there.
pub(crate) const INFO: &str = "/containerd.services.content.v1.Content/Info";
/// Gives out a blob.
pub(crate) const READ: &str = "/containerd.services.content.v1.Content/Read";
/// Takes a blob.
pub(crate) const WRITE: &str = "/containerd.services.content.v1.Content/Write";
/// Forgets what came of a blob.
pub(crate) const ABORT: &str = "/containerd.services.content.v1.Content/Abort";

/// What a message asks for, and what the answer is to.
pub(crate) mod action {
    /// Tell how far the blob has come.
    pub(crate) const STAT: i32 = 0;
    /// Take these bytes.
    pub(crate) const WRITE: i32 = 1;
    /// The blob is complete (these bytes included).
    pub(crate) const COMMIT: i32 = 2;
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WriteContentRequest {
    #[prost(int32, tag = "1")]
    pub(crate) action: i32,
    /// The blob's name while it is written.
    #[prost(string, tag = "2")]
    pub(crate) r#ref: String,
    /// Size of the blob in bytes, 0 if unknown.
    #[prost(int64, tag = "3")]
    pub(crate) total: i64,
    /// Digest of the blob, empty if unknown.
    #[prost(string, tag = "4")]
    pub(crate) expected: String,
    #[prost(int64, tag = "5")]
    pub(crate) offset: i64,
    #[prost(bytes = "bytes", tag = "6")]
    pub(crate) data: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WriteContentResponse {
    #[prost(int32, tag = "1")]
    pub(crate) action: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) started_at: Option<prost_types::Timestamp>,
    #[prost(message, optional, tag = "3")]
    pub(crate) updated_at: Option<prost_types::Timestamp>,
    /// The bytes taken so far.
    #[prost(int64, tag = "4")]
    pub(crate) offset: i64,
    #[prost(int64, tag = "5")]
    pub(crate) total: i64,
    #[prost(string, tag = "6")]
    pub(crate) digest: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct InfoRequest {
    #[prost(string, tag = "1")]
    pub(crate) digest: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReadContentRequest {
    #[prost(string, tag = "1")]
    pub(crate) digest: String,
    #[prost(int64, tag = "2")]
    pub(crate) offset: i64,
    /// Bytes to read: no more than there are from the offset on.
    #[prost(int64, tag = "3")]
    pub(crate) size: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReadContentResponse {
    #[prost(int64, tag = "1")]
    pub(crate) offset: i64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) data: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AbortRequest {
    #[prost(string, tag = "1")]
    pub(crate) r#ref: String,
}
