//! Giving every inode its place.

use super::WriteError;
use super::directory;
use super::space::Space;
use super::xattr;
use crate::layout::v6::{ChunkAddress, ExtendedInode, LAYOUT_CHUNKED, LAYOUT_INLINE, LAYOUT_PLAIN};
use crate::layout::{BLOCK_SIZE, PATH_LIMIT_BYTES};
use crate::tree::{Kind, NodeId, Tree};

/// Size in bytes of an inode without extended attributes.
pub(super) const INODE_SIZE: u64 = size_of::<ExtendedInode>() as u64;

/// Where an inode is. Offsets are relative to the inode area.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InodePlace {
    /// Offset of the inode.
    pub(super) inode: u64,
    /// Offset of the blocks that hold its content, or their first part.
    pub(super) blocks: u64,
    /// Size in bytes as the inode says it.
    pub(super) size: u64,
    /// Layout of the content.
    pub(super) layout: u16,
    /// Number of names; for directories as Unix counts them.
    pub(super) links: u32,
    /// For directories: the directory above.
    pub(super) parent: Option<NodeId>,
}

/// The places of all nodes that the tree's names lead to.
pub(super) struct Places {
    places: Vec<Option<InodePlace>>,
    /// The nodes in order of their inodes.
    pub(super) order: Vec<NodeId>,
    /// Size of the inode area in bytes: whole blocks.
    pub(super) area_size: u64,
    /// The number of inodes.
    pub(super) inodes: u64,
}

impl Places {
    /// Places a directory, then what is in it, then goes into its subdirectories: what a listing reads is together.
    pub(super) fn new(tree: &Tree, chunk_size: u32) -> Result<Self, WriteError> {
        let mut space = Space::new();
        let mut this =
            Self { places: vec![None; tree.node_count()], order: Vec::new(), area_size: 0, inodes: 0 };
        this.place(tree, Tree::ROOT, Some(Tree::ROOT), chunk_size, &mut space)?;
        let mut pending = vec![Tree::ROOT];
        // Of what is in a directory, files get their places before directories, in whose order the walk goes on: `pending` is a
        // stack, so they are put on it the other way round.
        while let Some(directory) = pending.pop() {
            let Some(children) = tree.entries(directory) else { continue };
            let first = pending.len();
            for &child in children.values() {
                if tree.entries(child).is_some() {
                    pending.push(child);
                    this.place_mut(directory).links += 1;
                } else if let Some(place) = &mut this.places[child.0 as usize] {
                    place.links += 1;
                } else {
                    this.place(tree, child, None, chunk_size, &mut space)?;
                }
            }
            for &child in &pending[first..] {
                this.place(tree, child, Some(directory), chunk_size, &mut space)?;
            }
            pending[first..].reverse();
        }
        // Nearly so already: only gaps are filled later.
        this.order.sort_by_key(|&node| this.places[node.0 as usize].map(|place| place.inode));
        this.area_size = space.size();
        this.inodes = this.order.len() as u64;
        Ok(this)
    }

    /// The place of a node.
    pub(super) fn of(&self, node: NodeId) -> &InodePlace {
        self.places[node.0 as usize].as_ref().expect("every node that a name leads to has a place")
    }

    fn place_mut(&mut self, node: NodeId) -> &mut InodePlace {
        self.places[node.0 as usize].as_mut().expect("a directory is placed before its entries")
    }

    fn place(
        &mut self,
        tree: &Tree,
        id: NodeId,
        parent: Option<NodeId>,
        chunk_size: u32,
        space: &mut Space,
    ) -> Result<(), WriteError> {
        if self.places[id.0 as usize].is_some() {
            return Err(WriteError::LinkedDirectory);
        }
        let node = tree.node(id);
        let inode_size = INODE_SIZE + xattr::encode(&node.metadata.xattrs)?.len() as u64;
        let place = match &node.kind {
            Kind::Directory(children) => {
                let place = with_content(space, inode_size, directory::size(children)?);
                InodePlace { links: 2, parent, ..place }
            }
            Kind::Regular { size, chunks } => {
                let expected = size.div_ceil(u64::from(chunk_size));
                // The kernel takes chunk number N for the bytes from N times the chunk size on; nothing else says which
                // bytes a chunk has.
                if chunks.len() as u64 != expected {
                    return Err(WriteError::ChunkCount { size: *size, found: chunks.len(), expected });
                }
                let addresses = chunks.len() as u64 * size_of::<ChunkAddress>() as u64;
                // The kernel looks for the addresses at the next multiple of 8 behind inode and attributes.
                let inode = space.take(inode_size.next_multiple_of(8) + addresses);
                InodePlace { inode, size: *size, layout: LAYOUT_CHUNKED, links: 1, ..InodePlace::default() }
            }
            Kind::Symlink(target) if target.len() > PATH_LIMIT_BYTES => {
                return Err(WriteError::LongSymlink(target.len()));
            }
            Kind::Symlink(target) => with_content(space, inode_size, target.len() as u64),
            Kind::CharDevice(_) | Kind::BlockDevice(_) | Kind::Fifo | Kind::Socket => InodePlace {
                inode: space.take(inode_size),
                layout: LAYOUT_PLAIN,
                links: 1,
                ..InodePlace::default()
            },
        };
        self.places[id.0 as usize] = Some(place);
        self.order.push(id);
        Ok(())
    }
}

/// Places an inode with content in the bootstrap. What does not fill a block goes behind the inode where both fit into
/// one block: EROFS wants an inline tail not to cross blocks.
fn with_content(space: &mut Space, inode_size: u64, size: u64) -> InodePlace {
    let tail = size % BLOCK_SIZE;
    let place = InodePlace { size, links: 1, ..InodePlace::default() };
    if tail != 0 && inode_size + tail <= BLOCK_SIZE {
        let inode = space.take_within_block(inode_size + tail);
        InodePlace { inode, blocks: space.take_blocks(size - tail), layout: LAYOUT_INLINE, ..place }
    } else {
        let inode = space.take(inode_size);
        InodePlace { inode, blocks: space.take_blocks(size), layout: LAYOUT_PLAIN, ..place }
    }
}
