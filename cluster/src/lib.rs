//! What makes an image a *cluster* image: the container images that it asks for.
//!
//! - [`mod@discover`]: what in a tree asks for container images, with file and line.
//! - [`mod@lock`]: what these images are: digests, platforms, sizes.
//! - [`mod@describe`]: what a cluster image says of itself, in the words of sealer and sealos.
//! - [`mod@save`]: the images of a lock, brought to a directory or a repository.
//! - [`mod@saved`]: what was saved, to be read.
//! - [`mod@serve`]: what a node answers for them.
//! - [`inspect`]: what a cluster image is made of, and what its container images have in common.
//! - [`mod@merge`]: cluster images put on one another.
//! - [`package`]: a cluster image and its container images, in one file or a directory.
//! - [`mod@launch`]: a cluster of an image: its nodes prepared, joined, launched.

pub mod config;
pub mod describe;
pub mod discover;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod helm;
pub mod inspect;
pub mod launch;
pub mod lock;
pub mod merge;
pub mod package;
pub mod save;
pub mod saved;
pub mod serve;
mod sys;

pub use config::ClusterConfig;
