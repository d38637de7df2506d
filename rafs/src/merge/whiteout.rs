//! What in a layer is not a file but says what to remove below.

use crate::tree::{DeviceNumber, Kind, Metadata, Node, Xattrs};

/// Prefix of an OCI whiteout's name: the rest is the name of what is removed.
pub(crate) const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// Prefix of names that AUFS kept for itself. All but the opaque marker mean nothing in an image.
const RESERVED: &[u8] = b".wh..wh.";

/// Name of the entry that makes its directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Prefixes of overlayfs's extended attributes: as root, and when mounted with `userxattr`.
const OVERLAY_PREFIXES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// What an entry of a layer's directory means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Meaning<'a> {
    /// A file.
    File,
    /// The name is removed below.
    Removes(&'a [u8]),
    /// Everything in the directory is removed below.
    Opaque,
    /// Nothing.
    Ignored,
}

/// What the entry `name` means. `parent` is the metadata of its directory.
pub(super) fn meaning<'a>(name: &'a [u8], node: &Node, parent: &Metadata) -> Meaning<'a> {
    if name == OPAQUE {
        return Meaning::Opaque;
    }
    if name.starts_with(RESERVED) {
        return Meaning::Ignored;
    }
    match name.strip_prefix(WHITEOUT_PREFIX) {
        // Nothing has these names.
        Some(b"" | b"." | b"..") => Meaning::Ignored,
        Some(removed) => Meaning::Removes(removed),
        None if is_overlay_whiteout(node, parent) => Meaning::Removes(name),
        None => Meaning::File,
    }
}

/// Whether overlayfs takes this directory as opaque.
pub(super) fn is_opaque(metadata: &Metadata) -> bool {
    overlay_xattr(&metadata.xattrs, b"opaque") == Some(b"y")
}

/// Drops what overlayfs notes in extended attributes and does not show.
pub(super) fn hide_overlay_xattrs(xattrs: &mut Xattrs) {
    if !xattrs.is_empty() {
        xattrs.retain(|name, _| !OVERLAY_PREFIXES.iter().any(|prefix| name.starts_with(prefix)));
    }
}

fn is_overlay_whiteout(node: &Node, parent: &Metadata) -> bool {
    match node.kind {
        Kind::CharDevice(number) => number == DeviceNumber { major: 0, minor: 0 },
        // Since Linux 6.7, where a directory says so: for layers that are themselves on overlayfs.
        Kind::Regular { size: 0, .. } => {
            overlay_xattr(&node.metadata.xattrs, b"whiteout").is_some()
                && overlay_xattr(&parent.xattrs, b"opaque") == Some(b"x")
        }
        _ => false,
    }
}

fn overlay_xattr<'a>(xattrs: &'a Xattrs, name: &[u8]) -> Option<&'a [u8]> {
    if xattrs.is_empty() {
        return None;
    }
    OVERLAY_PREFIXES
        .iter()
        .find_map(|prefix| xattrs.get([prefix, name].concat().as_slice()).map(|value| &**value))
}
