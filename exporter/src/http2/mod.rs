//! The HTTP/2 reverse proxy between a BuildKit client and buildkitd.
//!
//! - [`upstream`]: the connection to buildkitd that goes with it.
//! - [`forward`]: a stream that passes through untouched.
//! - [`call`]: a call of ours.
//! - [`respond`]: the answer to a call that is ours.
//! - [`unary`]: a call of one message, with something done before or after.
//! - [`pump`]: one direction of a stream, with flow control.
//! - [`settings`]: windows and limits of all HTTP/2 connections here.
//! - [`socket`]: what they run over, read and written in large pieces.
//! - [`deferral`]: a flush that waits for more.

pub(crate) mod call;
pub(crate) mod deferral;
pub(crate) mod forward;
pub(crate) mod pump;
pub(crate) mod respond;
pub(crate) mod settings;
pub(crate) mod socket;
pub(crate) mod unary;
pub(crate) mod upstream;

#[cfg(test)]
mod tests;
