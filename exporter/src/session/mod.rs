//! Inside the session: the tunnel as a connection, and which of its streams are ours.
//!
//! - [`tunnel`]: byte messages as a byte stream, for HTTP/2 inside HTTP/2.
//! - [`route`]: a stream of buildkitd's goes to the client, or to an output of ours.
//! - [`sessions`]: the sessions that are open.
//! - [`call`]: one call of ours to a session's client.
//! - [`auth`]: the client's credentials.

mod auth;
mod call;
mod route;
mod sessions;
mod tunnel;

pub(crate) use auth::SessionKeyring;
pub(crate) use route::route;
pub(crate) use sessions::Sessions;
pub(crate) use tunnel::Tunnel;
