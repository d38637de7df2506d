//! Checking an image: is it what it says, and all there?
//!
//! [`structure`] looks at the bootstrap alone, [`blobs`] at everything that the blobs hold, [`against_source`] at what the
//! image was made from.

mod blob;
mod chunk_info;
mod pass;
mod plan;
mod report;
mod source;
mod stream;
mod tree;

pub use blob::{Options, blobs};
pub use report::{Finding, Report};
pub use source::{against_source, source_options};
pub use tree::{structure, structure_within};
