//! What makes an image a *cluster* image: the container images that it asks for.
//!
//! - [`mod@discover`]: what in a tree asks for container images, with file and line.
//! - [`mod@lock`]: what these images are: digests, platforms, sizes.

pub mod config;
pub mod discover;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod helm;
pub mod lock;
mod sys;
mod yaml;

pub use config::ClusterConfig;
