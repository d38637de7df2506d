//! Checking an image: is it what it says, and all there?
//!
//! [`structure`] looks at the bootstrap alone, [`blobs`] at everything that the blobs hold.

mod blob;
mod report;
mod tree;

pub use blob::{Options, blobs};
pub use report::{Finding, Report};
pub use tree::structure;
