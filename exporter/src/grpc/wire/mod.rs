//! Protocol buffers at wire level.
//!
//! BuildKit adds fields to its messages every few releases, and a decoder that does not know them drops them. So the
//! messages that pass through are never decoded and encoded again: fields that are ours are cut out and put in, all
//! other bytes stay as they are.
//!
//! - [`varint`]: the base-128 numbers that everything is made of.
//! - [`field`]: walking over a message's fields and writing single ones.
//! - [`map`]: fields of type `map<string, string>`.

pub(crate) mod field;
pub(crate) mod map;
pub(crate) mod varint;

#[cfg(test)]
mod tests;

pub(crate) use field::{Field, Fields};

/// Bytes that are no protocol buffers message.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("malformed protobuf message at byte {offset} of {length}: {reason}")]
pub(crate) struct WireError {
    /// Where in the message.
    pub(crate) offset: usize,
    /// Size of the message in bytes.
    pub(crate) length: usize,
    /// What is wrong there.
    pub(crate) reason: &'static str,
}
