//! `blob.meta`: where each chunk of a blob lies, as a part of the blob stream.

mod encode;

pub use encode::{EncodeError, Encoded, encode};
