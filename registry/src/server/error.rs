//! The errors of the distribution specification, and those of running the server.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use http::StatusCode;
use thiserror::Error;

/// Why the server cannot run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The address cannot be listened on.
    #[error("registry: cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The failure.
        source: std::io::Error,
    },
    /// A file or folder of the configuration cannot be used.
    #[error("registry: {what} {}: {source}", path.display())]
    Path {
        /// The setting.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The failure.
        source: std::io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("registry: tls {}: {reason}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The password file holds something else.
    #[error("registry: htpasswd {}, line {line}: {reason}", path.display())]
    Htpasswd {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// The specification's error codes, and their statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    Denied,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    PageSizeInvalid,
    RangeInvalid,
    SizeInvalid,
    TagInvalid,
    Unauthorized,
    Unsupported,
    UnknownPath,
    Busy,
    Crowded,
    Unavailable,
    Internal,
    Elsewhere,
}

impl Code {
    /// Code and message of the answer's JSON, and its status.
    pub(super) fn parts(self) -> (&'static str, &'static str, StatusCode) {
        match self {
            Self::BlobUnknown => ("BLOB_UNKNOWN", "blob unknown to the repository", StatusCode::NOT_FOUND),
            Self::BlobUploadInvalid => {
                ("BLOB_UPLOAD_INVALID", "blob upload invalid", StatusCode::BAD_REQUEST)
            }
            Self::BlobUploadUnknown => ("BLOB_UPLOAD_UNKNOWN", "blob upload unknown", StatusCode::NOT_FOUND),
            Self::Denied => ("DENIED", "access to the content is denied", StatusCode::FORBIDDEN),
            Self::DigestInvalid => {
                ("DIGEST_INVALID", "digest invalid or not that of the content", StatusCode::BAD_REQUEST)
            }
            Self::ManifestBlobUnknown => (
                "MANIFEST_BLOB_UNKNOWN",
                "manifest refers to content that the repository does not have",
                StatusCode::BAD_REQUEST,
            ),
            Self::ManifestInvalid => ("MANIFEST_INVALID", "manifest invalid", StatusCode::BAD_REQUEST),
            Self::ManifestTooLarge => {
                ("MANIFEST_INVALID", "manifest too large", StatusCode::PAYLOAD_TOO_LARGE)
            }
            Self::ManifestUnknown => ("MANIFEST_UNKNOWN", "manifest unknown", StatusCode::NOT_FOUND),
            Self::NameInvalid => ("NAME_INVALID", "repository name invalid", StatusCode::BAD_REQUEST),
            Self::NameUnknown => ("NAME_UNKNOWN", "repository unknown", StatusCode::NOT_FOUND),
            Self::PageSizeInvalid => {
                ("PAGINATION_NUMBER_INVALID", "page size invalid", StatusCode::BAD_REQUEST)
            }
            Self::RangeInvalid => ("RANGE_INVALID", "range invalid", StatusCode::RANGE_NOT_SATISFIABLE),
            Self::SizeInvalid => {
                ("SIZE_INVALID", "length is not that of the content", StatusCode::BAD_REQUEST)
            }
            Self::TagInvalid => ("TAG_INVALID", "tag invalid", StatusCode::BAD_REQUEST),
            Self::Unauthorized => ("UNAUTHORIZED", "authentication required", StatusCode::UNAUTHORIZED),
            Self::Unsupported => ("UNSUPPORTED", "operation unsupported", StatusCode::METHOD_NOT_ALLOWED),
            Self::UnknownPath => {
                ("UNSUPPORTED", "no such path in the distribution API", StatusCode::NOT_FOUND)
            }
            Self::Busy => (
                "TOOMANYREQUESTS",
                "the upload is still busy with a request before",
                StatusCode::TOO_MANY_REQUESTS,
            ),
            Self::Crowded => {
                ("TOOMANYREQUESTS", "more is sent at once than can be taken", StatusCode::TOO_MANY_REQUESTS)
            }
            // Not of the specification: the code of CNCF distribution.
            Self::Unavailable => ("UNAVAILABLE", "too busy now, come again", StatusCode::SERVICE_UNAVAILABLE),
            Self::Internal => {
                ("UNKNOWN", "internal error, see the registry's log", StatusCode::INTERNAL_SERVER_ERROR)
            }
            Self::Elsewhere => {
                ("UNKNOWN", "the content cannot be fetched from where it is", StatusCode::BAD_GATEWAY)
            }
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.parts().1)
    }
}

/// A request that fails: what is answered, and what is logged.
#[derive(Debug, Error)]
pub(super) enum Failure {
    /// An answer of the specification with what it is about.
    #[error("{code}: {detail}")]
    Refused { code: Code, detail: String },
    /// The disk failed.
    #[error("{doing} {}: {source}", path.display())]
    Storage { doing: &'static str, path: PathBuf, source: std::io::Error },
    /// The client went away or stalled in the middle of its request.
    #[error("request body: {0}")]
    Body(String),
}

impl Failure {
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self::Refused { code, detail: detail.into() }
    }

    pub(super) fn code(&self) -> Code {
        match self {
            Self::Refused { code, .. } => *code,
            Self::Storage { .. } => Code::Internal,
            Self::Body(_) => Code::BlobUploadInvalid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_words() {
        let refused = Failure::new(Code::BlobUnknown, "sha256:00");
        assert_eq!(refused.to_string(), "blob unknown to the repository: sha256:00");
    }
}
