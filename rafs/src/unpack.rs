//! Turning an image back into files: a tar archive or a directory.

mod directory;
mod error;
mod tar;
mod walk;

pub use directory::to_directory;
pub use error::UnpackError;
pub use tar::to_tar;
