//! The RAFS v6 image format of nydus as a library: build, merge, read, check.
//!
//! The crate does no network and no asynchronous input or output. Data flows
//!
//! ```text
//! tar | directory ──build──> Layer (tree + blob) ──merge──> Image ──bootstrap::write──> bytes
//!                                                                                        │
//!              unpack <── Bootstrap (mapped, not parsed) <──bootstrap::open──────────────┘
//! ```

pub mod blob;
pub mod bootstrap;
pub mod build;
pub mod check;
pub mod compress;
pub mod diff;
pub mod digest;
pub mod layout;
pub mod limits;
pub mod merge;
pub mod share;
pub mod source;
mod sys;
pub mod tree;
pub mod unpack;
pub mod xattr;
