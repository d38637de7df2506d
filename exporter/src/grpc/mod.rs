//! gRPC on top of HTTP/2 streams: what little of it the proxy speaks itself.
//!
//! - [`status`]: how an RPC ends.
//! - [`frame`]: the length-prefixed messages in a stream's DATA frames.
//! - [`wire`]: protocol buffers, spliced without decoding what is not ours.

pub(crate) mod frame;
pub(crate) mod status;
pub(crate) mod wire;

pub(crate) use status::{Code, Status};
