//! An image from anywhere to anywhere, converted to nydus on the way. It knows nothing of who asks.
//!
//! ```text
//! Location ──source──> layers ──layer──> blob and tree ──assemble──> bootstrap, config, manifest ──> destination
//!                      documents ──document──────────────────────────────┘
//! ```
//!
//! - [`location`], [`platform`]: where images are and what for, as people name them.
//! - [`options`]: what can be chosen about an image, by the words of keys and flags.
//! - [`mod@source`]: an image to be read, wherever it is.
//! - [`destination`]: where blobs and manifests go.
//! - [`layer`]: one layer on its way to a blob; what was converted before.
//! - [`document`]: manifest, index, config: each parsed in one place, unknown members kept.
//! - [`assemble`]: converted layers become an image.
//! - [`convert`]: a whole image, by all of these.
//! - [`copy`]: a whole image as it is.
//! - [`merge`]: images put on one another.
//! - [`files`]: some files of an image, in a directory.
//! - [`progress`]: what of it is done, for whoever shows it.

#![forbid(unsafe_code)]

pub mod assemble;
pub mod convert;
pub mod copy;
pub mod destination;
pub mod document;
pub mod files;
pub mod layer;
pub mod location;
pub mod merge;
pub mod options;
pub mod platform;
pub mod progress;
pub mod source;
#[cfg(test)]
mod test_layout;

pub use service::describe;
