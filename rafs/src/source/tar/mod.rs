//! A layer as a tar stream.

mod error;

pub use error::{Problem, TarError};
