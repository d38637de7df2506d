//! The `nydus-cluster` command: argument parsing and wiring, nothing else.

fn main() {}
