//! What makes an image a *cluster* image: the container images that it asks for.
//!
//! - [`mod@discover`]: what in a tree asks for container images, with file and line.
//! - [`mod@lock`]: what these images are: digests, platforms, sizes.
//! - [`mod@describe`]: what a cluster image says of itself, in the words of sealer and sealos.
//! - [`mod@save`]: the images of a lock, brought to a directory or a repository.

pub mod config;
pub mod describe;
pub mod discover;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod helm;
pub mod lock;
pub mod save;
mod sys;
mod yaml;

pub use config::ClusterConfig;
