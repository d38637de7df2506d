//! BuildKit's side alone: proxies Control, takes a build's result, and has crate `image` convert and push it.
//!
//! BuildKit's client and daemon are not patched. [`serve`] listens on a socket in buildkitd's place and passes on what
//! comes, byte for byte. Where a build has an output `type=nydus-cluster`, buildkitd is told to export an OCI image
//! over the client's session, and the session's content store is answered here. In the order of a build:
//!
//! ```text
//! buildctl ──serve, http2, grpc──> buildkitd
//!     control::solve     ours becomes oci; response waits for the push
//!     control::status    our progress among buildkitd's
//!     control::session   the tunnel back to the client, opened here
//!        build           keys and outputs of ours, by session and ref
//!        session         which of the tunnel's streams are ours
//!        intake          blobs of the result, as a content store or a tar stream
//!        follow          or from buildkitd's own content store, while they are written
//!            └──> image::layer ──> image::assemble ──> image::destination
//! ```

#![forbid(unsafe_code)]

mod build;
mod config;
mod control;
mod follow;
mod grpc;
mod http2;
mod intake;
mod metrics;
mod serve;
mod session;

pub use config::ExporterConfig;
pub use serve::{ServeError, serve, threads};
