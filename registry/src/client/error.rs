//! What can go wrong with a registry, said so that a person can act on it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::{Method, StatusCode};
use serde::Deserialize;
use thiserror::Error;

use crate::digest::{Digest, UnsupportedAlgorithm};
use crate::reference::Repository;

/// What a request was about: part of every error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The HTTP method.
    pub method: Method,
    /// The registry as named in references; for a mirror the mirror's host.
    pub host: String,
    /// The repository's name, empty for requests to the registry as a whole.
    pub repository: String,
    /// The manifest, blob or list asked for, with its name: `manifest v1`.
    pub item: String,
    /// Where the registry sent the request on to, such as an object store, if it did.
    pub redirected_to: Option<String>,
}

impl Target {
    pub(super) fn new(method: Method, repository: &Repository, item: impl Into<String>) -> Self {
        let (host, name) = (repository.host().to_owned(), repository.name().to_owned());
        Self { method, host, repository: name, item: item.into(), redirected_to: None }
    }

    /// Whatever is asked of a host.
    pub(super) fn host(host: &str) -> Self {
        let (repository, item) = (String::new(), String::new());
        Self { method: Method::GET, host: host.to_owned(), repository, item, redirected_to: None }
    }

    /// The same request as sent on by the registry to `host`.
    pub(super) fn redirected(&self, host: String) -> Self {
        Self { redirected_to: Some(host), ..self.clone() }
    }

    /// The same request as sent to `host`.
    pub(super) fn at(&self, host: &str) -> Self {
        Self { host: host.to_owned(), ..self.clone() }
    }

    pub(super) fn blob(method: Method, repository: &Repository, digest: &Digest) -> Self {
        Self::new(method, repository, format!("blob {digest}"))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "registry {}", self.host)?;
        if !self.repository.is_empty() {
            write!(f, ", repository {}", self.repository)?;
        }
        write!(f, ": {} {}", self.method, self.item)?;
        match &self.redirected_to {
            Some(host) => write!(f, ", sent on to {host}"),
            None => Ok(()),
        }
    }
}

/// A failed operation on a registry.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry refused or failed.
    #[error("{target}: {status}{message}{advice}")]
    Status {
        /// What was asked.
        target: Box<Target>,
        /// The answer's status.
        status: StatusCode,
        /// The registry's own words.
        message: RegistryMessage,
        /// What to do about it, with a separator in front; empty if unknown.
        advice: String,
        /// How long the registry asks to wait.
        retry_after: Option<Duration>,
    },
    /// No connection, or it broke.
    #[error("{target}: {reason}")]
    Connection {
        /// What was asked.
        target: Box<Target>,
        /// The causes, outermost first.
        reason: String,
    },
    /// No byte moved for too long.
    #[error("{target}: no byte moved for {after:?}")]
    Stalled {
        /// What was asked.
        target: Box<Target>,
        /// The deadline that passed.
        after: Duration,
    },
    /// Nothing moved for too long, over all attempts: see [`SilenceLimit`](super::SilenceLimit).
    #[error("{target}: no byte moved for {after:?}, with all attempts: see {setting}")]
    Silent {
        /// What was asked.
        target: Box<Target>,
        /// The deadline that passed.
        after: Duration,
        /// The setting that it comes from.
        setting: &'static str,
    },
    /// The operation as a whole took too long.
    #[error("{target}: not done within {after:?}{last}")]
    Deadline {
        /// What was asked.
        target: Box<Target>,
        /// The deadline that passed.
        after: Duration,
        /// What the attempt before failed with, with a separator in front; empty on the first.
        last: String,
    },
    /// The content is not what its digest says.
    #[error("{target}: expected {expected}, received content with {actual}")]
    Digest {
        /// What was asked.
        target: Box<Target>,
        /// The digest asked for or announced.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The body ended early or is too long.
    #[error("{target}: expected {expected} bytes, received {received}")]
    Length {
        /// What was asked.
        target: Box<Target>,
        /// The size expected.
        expected: u64,
        /// The bytes received until it was noticed.
        received: u64,
    },
    /// An answer that no registry should give.
    #[error("{target}: {reason}")]
    Protocol {
        /// What was asked.
        target: Box<Target>,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The registry forgot an upload that cannot be sent again.
    #[error(
        "{target}: the registry lost an upload after {acknowledged} acknowledged bytes ({reason}), and they are \
             not kept here to send them again: allow upload.spool"
    )]
    UploadLost {
        /// What was asked.
        target: Box<Target>,
        /// How many bytes it had acknowledged.
        acknowledged: u64,
        /// How the loss showed.
        reason: String,
    },
    /// The spool file of an upload failed.
    #[error("spool file for an upload in {}: {source}", dir.display())]
    Spool {
        /// Its folder.
        dir: PathBuf,
        /// The failure.
        source: std::io::Error,
    },
    /// A digest that cannot be verified.
    #[error(transparent)]
    UnsupportedDigest(#[from] UnsupportedAlgorithm),
    /// Credentials could not be read.
    #[error(transparent)]
    Credentials(#[from] super::credentials::CredentialsError),
    /// The configuration cannot be used.
    #[error("registry client configuration, {what}: {reason}")]
    Config {
        /// The setting.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// The status the registry answered with, if it did.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the registry says that the thing does not exist.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(StatusCode::NOT_FOUND)
    }

    /// Whether credentials are missing or not enough (401, 403).
    pub fn is_denied(&self) -> bool {
        matches!(self.status(), Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))
    }

    /// Whether the same request may well succeed later: broken connections, stalls, 408, 429, 5xx.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connection { .. }
            | Self::Stalled { .. }
            | Self::Silent { .. }
            | Self::Deadline { .. }
            | Self::Length { .. } => true,
            Self::Status { status, .. } => {
                matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
                    || (status.is_server_error() && *status != StatusCode::NOT_IMPLEMENTED)
            }
            _ => false,
        }
    }

    /// The host that the registry sent the request on to, where that one answered.
    pub(super) fn redirected_to(&self) -> Option<&str> {
        match self {
            Self::Status { target, .. } => target.redirected_to.as_deref(),
            _ => None,
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// A failure of the HTTP library, with the causes that its own text leaves out.
    pub(super) fn connection(target: &Target, error: reqwest::Error) -> Self {
        let error = error.without_url();
        let mut reason = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            let text = inner.to_string();
            if !reason.contains(&text) {
                reason.push_str(": ");
                reason.push_str(&text);
            }
            cause = inner.source();
        }
        Self::Connection { target: Box::new(target.clone()), reason }
    }

    pub(super) fn protocol(target: &Target, reason: impl Into<String>) -> Self {
        Self::Protocol { target: Box::new(target.clone()), reason: reason.into() }
    }
}

/// The errors in a registry's answer, or the start of whatever else it sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryMessage {
    /// `code` and `message` of each error: `MANIFEST_UNKNOWN`, "manifest unknown".
    pub errors: Vec<(String, String)>,
    /// The start of an answer that is not the JSON of the specification.
    pub text: String,
}

/// How much of an answer in another form is quoted.
const QUOTED_CHARS: usize = 200;

impl RegistryMessage {
    pub(super) fn parse(body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Answer {
            errors: Vec<One>,
        }
        #[derive(Deserialize)]
        struct One {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        match serde_json::from_slice::<Answer>(body) {
            Ok(answer) if !answer.errors.is_empty() => {
                let errors = answer.errors.into_iter().map(|e| (e.code, e.message)).collect();
                Self { errors, text: String::new() }
            }
            _ => {
                let text: String = String::from_utf8_lossy(body).chars().take(QUOTED_CHARS).collect();
                Self { errors: Vec::new(), text: text.split_whitespace().collect::<Vec<_>>().join(" ") }
            }
        }
    }

    /// Whether one of the errors has this code.
    pub fn has(&self, code: &str) -> bool {
        self.errors.iter().any(|(have, _)| have == code)
    }
}

impl fmt::Display for RegistryMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (code, message) in &self.errors {
            write!(f, ", {code} ({message})")?;
        }
        if self.text.is_empty() { Ok(()) } else { write!(f, ", {}", self.text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registrys_own_words_are_quoted() {
        let json = br#"{"errors":[{"code":"DENIED","message":"no","detail":{"x":1}}]}"#;
        assert_eq!(RegistryMessage::parse(json).to_string(), ", DENIED (no)");
        assert!(RegistryMessage::parse(json).has("DENIED"));
        assert_eq!(RegistryMessage::parse(b"<html>\n  bad  gateway").to_string(), ", <html> bad gateway");
        assert_eq!(RegistryMessage::parse(b"").to_string(), "");
        assert!(RegistryMessage::parse(&[b'x'; 10_000]).to_string().len() < 300);
    }
}
