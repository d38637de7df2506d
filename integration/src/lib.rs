//! End-to-end tests and benchmarks against real peers.
