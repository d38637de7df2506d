//! Windows and limits of all HTTP/2 connections here, outer and inner.

use h2::{client, server};

/// What a sender may have on its way in one stream. With HTTP/2's 64 KiB a build's result takes up to 2.7 times as long.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// What a sender may have on its way in all streams of a connection. It must be a multiple of the stream window: else one
/// stalled stream starves buildkitd's health checks, which end the session after 30 seconds.
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;

/// What we hold in a stream until the other side's window opens.
const SEND_BUFFER_BYTES: usize = 1 << 20;

/// buildkitd resets finished streams as a matter of course; h2's limits against floods of resets (20 streams) are made
/// for strangers and would end the connection.
const PENDING_RESETS: usize = 10_000;

/// What both sides of a connection have alike, on their builders, which share no trait.
macro_rules! limited {
    ($builder:expr) => {{
        let mut builder = $builder;
        builder
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_local_error_reset_streams(None);
        builder
    }};
}

/// A server's settings.
pub(crate) fn server() -> server::Builder {
    limited!(server::Builder::new())
}

/// A client's settings.
pub(crate) fn client() -> client::Builder {
    let mut builder = limited!(client::Builder::new());
    builder.enable_push(false);
    builder
}
