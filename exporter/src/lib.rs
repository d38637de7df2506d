//! BuildKit's side alone: proxies Control, takes a build's result, and has crate `image` convert and push it.
//!
//! BuildKit's client and daemon are not patched. [`serve`] listens on a socket in buildkitd's place and passes on what
//! comes, byte for byte. Where a build has an output `type=nydus-cluster`, buildkitd is told to export an OCI image
//! over the client's session, and the session's content store is answered here. In the order of a build:
//!
//! ```text
//! buildctl ──serve──> buildkitd
//!     control::solve     ours becomes oci; response waits for the push
//!     control::status    our progress among buildkitd's
//!     control::session   the tunnel back to the client, opened here
//!        exporter        what all connections share
//!        session         which of the tunnel's streams are ours
//!        intake          blobs of the result, as a content store or a tar stream
//!        follow          or from buildkitd's own content store, while they are written
//!        build           what they become: outputs of ours, their keys, what came for them
//!            ├──> client: the credentials, the build context and the disk of whoever builds
//!            └──> image::layer ──> image::assemble ──> image::destination
//! ```
//!
//! A module uses only those below it here; all of them use `content`, `http2` and `grpc`, which speak the protocols, in this order.

#![forbid(unsafe_code)]

mod build;
mod client;
mod config;
mod content;
mod control;
mod exporter;
mod follow;
mod grpc;
mod http2;
mod intake;
mod metrics;
mod serve;
mod session;

pub use config::ExporterConfig;
pub use exporter::{SettingsError, threads};
pub use serve::{ServeError, serve};
