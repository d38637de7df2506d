//! OCI distribution: a client that streams and an embedded server.
