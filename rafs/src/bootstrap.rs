//! Bootstraps: the metadata of an image or of one layer, as a file of its own.
//!
//! [`write()`] turns an [`Image`](crate::tree::Image) into the bytes that nydus's tools, nydusd and the kernel's EROFS
//! driver read; [`Bootstrap`] reads such bytes where they lie.

mod read;
mod walk;
mod write;

pub use read::{
    At, Bootstrap, ChunkUse, Directory, DirectoryEntry, DumpError, Inode, Nid, Pieces, ReadError, Version,
    dump,
};
pub use walk::{FileNames, Flaw, Found, Visitor, walk};
pub use write::{WriteError, WriteOptions, write, write_layer};
