//! The messages of containerd's `Content/Write`. Both ends of this call are served by us alone, so they are decoded.

use bytes::Bytes;
use prost::Message;

/// What a message asks for, and what the answer is to.
pub(super) mod action {
    /// Tell how far the blob has come.
    pub(in crate::intake) const STAT: i32 = 0;
    /// Take these bytes.
    pub(in crate::intake) const WRITE: i32 = 1;
    /// The blob is complete (these bytes included).
    pub(in crate::intake) const COMMIT: i32 = 2;
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WriteContentRequest {
    #[prost(int32, tag = "1")]
    pub(super) action: i32,
    /// The blob's name while it is written.
    #[prost(string, tag = "2")]
    pub(super) r#ref: String,
    /// Size of the blob in bytes, 0 if unknown.
    #[prost(int64, tag = "3")]
    pub(super) total: i64,
    /// Digest of the blob, empty if unknown.
    #[prost(string, tag = "4")]
    pub(super) expected: String,
    #[prost(int64, tag = "5")]
    pub(super) offset: i64,
    #[prost(bytes = "bytes", tag = "6")]
    pub(super) data: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WriteContentResponse {
    #[prost(int32, tag = "1")]
    pub(super) action: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) started_at: Option<prost_types::Timestamp>,
    #[prost(message, optional, tag = "3")]
    pub(super) updated_at: Option<prost_types::Timestamp>,
    /// The bytes taken so far.
    #[prost(int64, tag = "4")]
    pub(super) offset: i64,
    #[prost(int64, tag = "5")]
    pub(super) total: i64,
    #[prost(string, tag = "6")]
    pub(super) digest: String,
}
