//! Inside the session: the tunnel as a connection, and which of its streams are ours.
//!
//! - [`tunnel`]: byte messages as a byte stream, for HTTP/2 inside HTTP/2.
//! - [`inner`]: the connection that it carries, in which buildkitd calls.
//! - [`own`]: a session of a build's own beside its client's.
//! - [`route`]: a stream of buildkitd's goes to the client, or to an output of ours.
//! - [`sessions`]: the sessions that are open.

pub(crate) mod inner;
mod own;
mod route;
mod sessions;
mod tunnel;

pub(crate) use own::{SESSION_ID, id_for, open_own};
use route::route;
pub(crate) use sessions::{SessionClient, Sessions};
pub(crate) use tunnel::Tunnel;
