//! Bootstraps: the metadata of an image or of one layer, as a file of its own.
//!
//! [`write()`] turns an [`Image`](crate::tree::Image) into the bytes that nydus's tools, nydusd and the kernel's EROFS
//! driver read; [`Bootstrap`] reads such bytes where they lie.

mod read;
mod walk;
mod write;

pub use read::{At, Bootstrap, ChunkUse, Directory, DirectoryEntry, Inode, Nid, Pieces, ReadError, Version};
pub use walk::{Found, Visitor, walk};
pub use write::{WriteError, WriteOptions, write, write_layer};
