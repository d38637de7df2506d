//! The HTTP/2 reverse proxy between a BuildKit client and buildkitd.
//!
//! - [`listen`]: the socket that clients connect to.
//! - [`connection`]: one client's connection, and which of its streams are ours to look into.
//! - [`upstream`]: the connection to buildkitd that goes with it.
//! - [`forward`]: a stream that passes through untouched.
//! - [`pump`]: one direction of a stream, with flow control.
//! - [`settings`]: windows and limits of all HTTP/2 connections here.

mod connection;
pub(crate) mod forward;
mod listen;
pub(crate) mod pump;
pub(crate) mod settings;
pub(crate) mod upstream;

#[cfg(test)]
mod tests;

pub(crate) use connection::serve_connection;
pub(crate) use listen::Listener;
