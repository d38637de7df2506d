//! The three RPCs of BuildKit's Control service that need more than forwarding.
//!
//! - [`solve`]: our outputs become OCI outputs, and the build ends when the image is pushed.
//! - [`report`]: what the response says of images.
//! - [`session`]: the tunnel by which buildkitd reaches its client, and so us.
//! - [`status`]: progress, with ours put in.
//! - [`message`]: the fields of their messages that matter here.

pub(crate) mod message;
mod report;
pub(crate) mod session;
pub(crate) mod solve;
pub(crate) mod status;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use h2::server::SendResponse;
use http::Request;

use crate::exporter::Exporter;

/// Path of the RPC that runs a build.
pub(crate) const SOLVE: &str = "/moby.buildkit.v1.Control/Solve";
/// Path of the RPC that reports a build's progress.
pub(crate) const STATUS: &str = "/moby.buildkit.v1.Control/Status";
/// Path of the RPC that carries the session.
pub(crate) const SESSION: &str = "/moby.buildkit.v1.Control/Session";

/// An RPC of a client, and the way on to buildkitd.
pub(crate) struct Rpc<'a> {
    pub(crate) request: Request<RecvStream>,
    pub(crate) downstream: SendResponse<Bytes>,
    pub(crate) upstream: SendRequest<Bytes>,
    /// What is behind `upstream`, for errors.
    pub(crate) peer: &'a str,
    pub(crate) exporter: &'a Exporter,
}
