//! The blob stream: what a registry stores for a layer.
//!
//! Each part is *followed* by its tar header, without padding in between, so that nothing needs to be known in advance:
//!
//! ```text
//! chunk data │ header │ chunk info │ chunk-info header │ header │ digests │ header │ bootstrap │ header │ TOC │ header
//! image.blob            blob.meta                                 blob.digest        image.boot           rafs.blob.toc
//! ```
//!
//! A layer without chunks has only the last two.

mod own;
mod toc;
mod write;

pub use own::{OwnBootstrap, own_bootstrap, own_bootstrap_within};
pub use toc::{Part, Toc, TocError};
pub use write::{BlobWriter, FinishError};
