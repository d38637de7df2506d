//! End-to-end tests: one file a promise.
fn main() {}
