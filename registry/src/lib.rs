//! OCI distribution: a client that streams and an embedded server.
//!
//! - [`mod@reference`]: image references as people type them, and repositories.
//! - [`digest`]: content digests and hashing while data flows.
//! - [`media_types`]: the media types of images.
//! - [`nydus`]: media types, annotations and labels of nydus images.
//! - [`layout`]: stored content, on CNCF distribution's storage layout, in a directory or a tar.
//! - [`client`]: pull, ranged reads, resumable push, tokens, mirrors.
//! - [`server`]: a registry in this process, on CNCF distribution's storage layout.

#![forbid(unsafe_code)]

#[cfg(test)]
mod arbitrary;
pub mod client;
pub mod digest;
pub mod layout;
pub mod media_types;
pub mod nydus;
pub mod reference;
pub mod server;

pub use digest::Digest;
pub use reference::{Reference, Repository};
