//! Cluster images as people make them, in registries of this process and others: what they ask for is found, locked, saved,
//! packaged and merged.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

mod discover;
mod lock;
mod merge;
mod package;
// Other registries, and what is between them and us: as the registry's own tests have them.
#[path = "../../../registry/tests/it/support/mod.rs"]
#[allow(dead_code, reason = "these tests need some of it")]
mod peers;
mod reference;
mod save;
mod support;
