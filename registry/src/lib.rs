//! OCI distribution: a client that streams and an embedded server.
//!
//! - [`mod@reference`]: image references as people type them, and repositories.
//! - [`digest`]: content digests and hashing while data flows.
//! - [`nydus`]: media types, annotations and labels of nydus images.
//! - [`client`]: pull, ranged reads, resumable push, tokens, mirrors.
//! - [`location`], [`mod@source`]: images wherever they are, as people name them, and reading them from there.
//! - [`platform`]: platforms as people name them.
//! - [`server`]: a registry in this process, on CNCF distribution's storage layout.

#![forbid(unsafe_code)]

pub mod client;
pub mod digest;
pub mod location;
pub mod nydus;
pub mod platform;
pub mod reference;
pub mod server;
pub mod source;

pub use digest::Digest;
pub use reference::{Reference, Repository};
