//! `blob.meta`: where each chunk of a blob lies, as a part of the blob stream.

mod encode;
mod read;

pub use encode::{EncodeError, Encoded, encode};
pub use read::{BlobMeta, ChunkInfo, MetaError};
