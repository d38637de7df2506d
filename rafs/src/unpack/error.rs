//! Why an image cannot be unpacked.

use std::io;

use crate::blob::source::BlobError;
use crate::bootstrap::ReadError;

/// Why an image cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum UnpackError {
    #[error("{path}: cannot {action}")]
    Io { path: String, action: &'static str, source: io::Error },
    #[error("{path}: cannot read its content")]
    Content { path: String, source: Box<BlobError> },
    #[error("cannot read the bootstrap")]
    Bootstrap(#[from] ReadError),
    #[error("the target directory {0} is not empty")]
    NotEmpty(String),
    #[error("{path}: nested deeper than {limit} directories")]
    TooDeep { path: String, limit: usize },
    #[error("unpacking was stopped")]
    Stopped,
}

/// A path for messages.
pub(super) fn shown(path: &[u8]) -> String {
    format!("/{}", path.escape_ascii())
}
