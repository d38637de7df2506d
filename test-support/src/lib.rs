//! What the tests of several crates share. It knows no crate of ours, so each may use it.
//!
//! - [`content`]: bytes for files;
//! - [`archive`]: layers, as tar streams;
//! - [`certificate`]: certificates of a test's own;
//! - [`log`](mod@log): what a program says, and where it listens;
//! - [`pipe`](mod@pipe): output that nobody reads;
//! - [`program`](mod@program): programs to run;
//! - [`words`](mod@words): what is hard to read;
//! - [`needs`](mod@needs): tests that not every machine can run.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests: what they cannot do fails the test")]

pub mod archive;
pub mod certificate;
pub mod content;
pub mod log;
pub mod needs;
pub mod pipe;
pub mod program;
pub mod words;

pub use archive::{gzip, tar_of};
pub use certificate::{SignedBy, make_certificate};
pub use content::{noise, text};
pub use log::Log;
pub use needs::{Need, has, helm};
pub use pipe::closed_pipe;
pub use program::write_program;
pub use words::hard_words;
