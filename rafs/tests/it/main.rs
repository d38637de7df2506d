//! Images built, merged, written, read, unpacked and checked.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

mod arbitrary;
mod archive;
mod blob_stream;
mod bootstrap;
mod check;
mod flatten;
mod golden;
mod layer_files;
mod model;
mod support;
mod unpack;
mod upstream;
