//! The BuildKit client's end of its session: what it serves there, for buildkitd and for us.
//!
//! - [`auth`]: its credentials.
//! - [`context`]: the files of its build context.
//! - [`disk`]: its disk, as a destination.

mod auth;
mod context;
pub(crate) mod disk;

use bytes::Bytes;
use prost::Message;

pub(crate) use auth::SessionKeyring;
pub(crate) use context::ContextFiles;

/// What is at the other end of a client's session, for errors.
pub(crate) const CLIENT: &str = "the BuildKit client's session";

/// Takes a file, as a stream of [`BytesMessage`].
pub(crate) const FILE_SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";
/// Header with the index of the output that the file is for; absent before v0.13, when there was but one.
pub(crate) const EXPORTER_ID: &str = "buildkit-attachable-exporter-id";

/// Header that names one of the client's content stores.
pub(crate) const STORE_ID: &str = "buildkit-attachable-store-id";
/// The store that all image exports of a build go to.
pub(crate) const EXPORT_STORE: &str = "export";

/// A piece of a file.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct BytesMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) data: Bytes,
}
