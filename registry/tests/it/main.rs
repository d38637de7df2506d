//! The registry crate against real peers: the same promises with the embedded server and CNCF distribution's
//! registry, and what happens when connections, registries or disks fail.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

mod auth;
mod certs_dir;
mod contract;
mod copies;
mod elsewhere;
mod expiry;
mod faults;
mod handover;
mod keyring;
mod limits;
mod mirrors;
mod reads;
mod redirects;
mod server;
mod silence;
mod skopeo;
mod supplied;
mod support;
mod tls;
mod uploads;
