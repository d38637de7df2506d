//! The exporter between real clients of BuildKit and a real buildkitd.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

mod also_oci;
mod beside;
mod buildkit;
mod clients;
mod credentials;
mod disk;
mod elsewhere;
mod exported_before;
mod failures;
mod keys;
mod same_image;
mod service;
mod silent;
mod support;
