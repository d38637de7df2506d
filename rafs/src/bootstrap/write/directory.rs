//! Directory blocks.

use std::collections::BTreeMap;

use zerocopy::IntoBytes;

use super::WriteError;
use crate::layout::v6::{Dirent, FileType};
use crate::layout::{BLOCK_SIZE, is_name};
use crate::tree::{Name, NodeId};

const ENTRY_SIZE: usize = size_of::<Dirent>();

/// What a name in a directory leads to.
#[derive(Clone, Copy)]
pub(super) enum NameTarget {
    This,
    Parent,
    Node(NodeId),
}

/// The entries as stored: in byte order with `.` and `..` among them (names like `-x` sort before).
pub(super) fn entries(entries: &BTreeMap<Name, NodeId>) -> impl Iterator<Item = (&[u8], NameTarget)> {
    let mut dots = [(&b"."[..], NameTarget::This), (&b".."[..], NameTarget::Parent)].into_iter().peekable();
    let mut named = entries.iter().map(|(name, node)| (&**name, NameTarget::Node(*node))).peekable();
    std::iter::from_fn(move || match (dots.peek(), named.peek()) {
        (Some(dot), Some(name)) if name.0 < dot.0 => named.next(),
        (Some(_), _) => dots.next(),
        (None, _) => named.next(),
    })
}

/// The size in bytes of a directory's content; refuses bad names.
pub(super) fn size(children: &BTreeMap<Name, NodeId>) -> Result<u64, WriteError> {
    for name in children.keys() {
        if !is_name(name) || **name == b"."[..] || **name == b".."[..] {
            return Err(WriteError::BadName(name.escape_ascii().to_string()));
        }
    }
    let mut size = 0;
    for (name, _) in entries(children) {
        size = next(size, name).1;
    }
    Ok(size)
}

/// Where an entry goes in the content: in which block, by its offset, and the content's size with it. An entry and its
/// name are in the same block.
fn next(size: u64, name: &[u8]) -> (u64, u64) {
    let len = (ENTRY_SIZE + name.len()) as u64;
    let start = if size % BLOCK_SIZE + len > BLOCK_SIZE || size.is_multiple_of(BLOCK_SIZE) {
        size.next_multiple_of(BLOCK_SIZE)
    } else {
        size
    };
    (start - start % BLOCK_SIZE, start + len)
}

/// A directory's content of `size` bytes, as [`size`] says, given nid and type of each entry.
pub(super) fn content(
    children: &BTreeMap<Name, NodeId>,
    size: u64,
    mut resolve: impl FnMut(NameTarget) -> (u64, FileType),
) -> Vec<u8> {
    let mut content = Vec::with_capacity(size as usize);
    let mut block: Vec<(&[u8], NameTarget)> = Vec::new();
    let (mut block_start, mut end) = (0, 0);
    for (name, target) in entries(children) {
        let (start, new_end) = next(end, name);
        if start != block_start {
            push_block(&mut content, &block, &mut resolve);
            content.resize(start as usize, 0);
            block.clear();
            block_start = start;
        }
        block.push((name, target));
        end = new_end;
    }
    push_block(&mut content, &block, &mut resolve);
    content
}

fn push_block(
    content: &mut Vec<u8>,
    block: &[(&[u8], NameTarget)],
    resolve: &mut impl FnMut(NameTarget) -> (u64, FileType),
) {
    let mut name_offset = block.len() * ENTRY_SIZE;
    for &(name, target) in block {
        let (nid, file_type) = resolve(target);
        // Less than a block, for a block holds all of it.
        let offset = name_offset as u16;
        let entry =
            Dirent { nid: nid.into(), name_offset: offset.into(), file_type: file_type as u8, reserved: 0 };
        content.extend_from_slice(entry.as_bytes());
        name_offset += name.len();
    }
    for (name, _) in block {
        content.extend_from_slice(name);
    }
}
