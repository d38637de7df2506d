//! How an RPC ends: a code and a message, sent as trailers.

use std::fmt;

use http::{HeaderMap, HeaderValue};

const STATUS: &str = "grpc-status";
const MESSAGE: &str = "grpc-message";

/// Longer messages are cut: what a registry adds to its refusal may be of any length, and headers have limits.
const MESSAGE_CHARACTERS: usize = 4000;

/// The status codes used here, by their number on the wire.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub(crate) enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    NotFound = 5,
    AlreadyExists = 6,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
}

impl Code {
    const ALL: [Self; 12] = [
        Self::Ok,
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::NotFound,
        Self::AlreadyExists,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
    ];
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown error",
            Self::InvalidArgument => "invalid argument",
            Self::NotFound => "not found",
            Self::AlreadyExists => "already exists",
            Self::ResourceExhausted => "resource exhausted",
            Self::FailedPrecondition => "failed precondition",
            Self::Unimplemented => "not implemented",
            Self::Internal => "internal error",
            Self::Unavailable => "unavailable",
            Self::DataLoss => "data loss",
        })
    }
}

/// A code and the reason for it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Status {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Status {
    /// A status of `code` for the reason `message`.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The same, with who told it.
    pub(crate) fn told_by(self, peer: &str) -> Self {
        Self::new(self.code, format!("{peer}: {}", self.message))
    }

    /// The trailers that say this.
    pub(crate) fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        trailers.insert(STATUS, HeaderValue::from(self.code as u16));
        if !self.message.is_empty() {
            let shown: String = self.message.chars().take(MESSAGE_CHARACTERS).collect();
            let message = HeaderValue::from_str(&percent_encode(&shown));
            trailers.insert(MESSAGE, message.expect("percent-encoded text is printable ASCII"));
        }
        trailers
    }
}

/// What `trailers` (or the headers of a response that has nothing else) say.
pub(crate) fn of(trailers: &HeaderMap) -> Result<(), Status> {
    if is_ok(trailers) {
        return Ok(());
    }
    let text = |name| trailers.get(name).and_then(|value| value.to_str().ok());
    let number = text(STATUS).and_then(|number| number.parse::<u16>().ok());
    let code = Code::ALL.into_iter().find(|code| number == Some(*code as u16)).unwrap_or(Code::Unknown);
    let message = text(MESSAGE).map_or_else(|| code.to_string(), percent_decode);
    Err(Status::new(code, message))
}

/// Whether `trailers` (or the headers of a response that has nothing else) say that the RPC succeeded.
pub(crate) fn is_ok(trailers: &HeaderMap) -> bool {
    trailers.get(STATUS).is_some_and(|status| status == "0")
}

/// gRPC's encoding of messages: printable ASCII but `%` stays, every other byte becomes `%XX`.
fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The reverse of [`percent_encode`]; what is no such encoding stays.
fn percent_decode(text: &str) -> String {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| byte == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                rest = &after[2..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_as_it_was_sent() {
        let sent = Status::new(Code::Unavailable, "100 % of “x”");
        assert_eq!(of(&sent.trailers()), Err(sent));
        assert_eq!(of(&Status::new(Code::Ok, "").trailers()), Ok(()));
        assert_eq!(percent_decode("50%"), "50%");
    }

    #[test]
    fn a_message_of_any_characters_becomes_a_header() {
        let trailers = Status::new(Code::Unknown, "100 % of “x”\n").trailers();
        assert_eq!(trailers[MESSAGE], "100 %25 of %E2%80%9Cx%E2%80%9D%0A");
        assert_eq!(trailers[STATUS], "2");
    }

    #[test]
    fn a_code_without_a_message_is_told_in_words() {
        assert_eq!(
            of(&Status::new(Code::FailedPrecondition, "").trailers()),
            Err(Status::new(Code::FailedPrecondition, "failed precondition"))
        );
    }

    #[test]
    fn success_is_status_zero_alone() {
        assert!(is_ok(&Status::new(Code::Ok, "").trailers()));
        assert!(!is_ok(&Status::new(Code::Internal, "").trailers()));
        assert!(!is_ok(&HeaderMap::new()));
    }
}
