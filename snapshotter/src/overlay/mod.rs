//! Directories of snapshots, and the mounts that show them.
//!
//! ```text
//! ROOT/snapshots/<id>/fs     what a snapshot adds to its parents; overlayfs's upper directory
//! ROOT/snapshots/<id>/work   overlayfs's work directory, of active snapshots
//! ROOT/mounts/<id>           where the image of bootstrap snapshot <id> is mounted
//! ROOT/empty                 beneath layers that are unpacked apart from their parents
//! ```
//!
//! Mounts are built as containerd's overlayfs snapshotter builds them, since clients of containerd (CRI, BuildKit,
//! `ctr`) take them apart again.

mod attributes;
mod directories;
mod id_mapping;
mod mounts;
mod options;
mod usage;

#[cfg(test)]
mod tests;

pub(crate) use attributes::RootAttributes;
pub(crate) use directories::Directories;
pub(crate) use id_mapping::check_kernel;
pub(crate) use mounts::{Layers, Mount, mounts};
pub(crate) use options::overlay_options;
pub(crate) use usage::disk_usage;
