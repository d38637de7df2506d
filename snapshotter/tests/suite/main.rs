//! The snapshots service over a real connection, with real mounts.
//!
//! What containerd's own suite for snapshotters (`core/snapshots/testsuite`) checks is checked here through gRPC; then
//! what nydus images add, with a daemon that speaks the control protocol and serves plain directories as images; last
//! real containerd with plain images. Mounting needs root: without it a test says `skipped: needs root`.
// All of it is tests; clippy exempts only the functions marked so.
#![allow(clippy::unwrap_used)]

mod access;
mod cleanup;
mod crash;
mod daemon;
mod fake_daemon;
mod harness;
mod held;
mod layers;
mod lifecycle;
mod metrics;
mod node_images;
mod nydus;
mod pull_secrets;
mod rebase;
mod restart;
mod room;
mod sets;
mod tree;
mod walk;
