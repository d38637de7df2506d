//! Inside the session: the tunnel as a connection, and which of its streams are ours.
//!
//! - [`tunnel`]: byte messages as a byte stream, for HTTP/2 inside HTTP/2.
//! - [`route`]: a stream of buildkitd's goes to the client, or to an output of ours.

mod route;
mod tunnel;

pub(crate) use route::route;
pub(crate) use tunnel::Tunnel;
