//! What differs between two images, and what a node that has the one must fetch for the other.

mod change;
mod content;
mod fetch;
mod tree;

pub use change::{Change, ChangeKind, Difference, Side};
pub use content::ContentReader;
pub use fetch::{BlobFetch, Fetch, chunk_info_bytes, fetch};
pub use tree::{DiffError, ReadContent, images, images_within};

#[cfg(test)]
mod tests;
