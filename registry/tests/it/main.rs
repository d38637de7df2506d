//! The registry crate against real peers: the same promises with the embedded server and CNCF distribution's
//! registry, and what happens when connections, registries or disks fail.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

mod auth;
mod contract;
mod faults;
mod handover;
mod reads;
mod server;
mod skopeo;
mod support;
mod tls;
mod uploads;
