//! What makes a snapshot one of a nydus image, and the mounts of such images.
//!
//! An image's layers are data blobs and, last, a bootstrap. The blobs are never unpacked: their snapshots are names
//! alone. The bootstrap's snapshot holds the file from which the daemon serves the whole image, once for all containers
//! on it.

mod access;
mod beside;
mod images;
mod layer;
mod lazy;
pub(crate) mod mountinfo;
mod names;
mod uses;

#[cfg(test)]
mod tests;

pub(crate) use access::Access;
pub(crate) use beside::{BesidePlain, Fetched};
pub(crate) use images::{Image, Images};
pub(crate) use layer::{
    Beneath, FOUND_REFERENCE, IMAGE_REFERENCES, Layer, blob_among, blob_of, bootstrap_in, is_unpacked_apart,
    reference_of,
};
pub(crate) use uses::InUse;
