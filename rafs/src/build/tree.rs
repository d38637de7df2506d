//! From entries in the order of a source to a tree.
//!
//! What unpacking the source to a directory would leave is what the tree has: a later entry replaces an earlier one of
//! its path (a directory keeps its children if a directory replaces it), parents that have no entry are made up, and
//! symbolic links on the way to an entry are followed, within the root.

use super::BuildError;
use super::error::PathProblem;
use super::links::PendingLinks;
use super::path::components;
use crate::layout::NAME_LIMIT_BYTES;
use crate::layout::v6::FileType;
use crate::merge::WHITEOUT_PREFIX;
use crate::source::{Entry, EntryKind};
use crate::tree::{Kind, Metadata, Node, NodeId, Stop, TooManySteps, Tree, Walk, Xattrs};
use crate::xattr;

/// Directories that may be made up for entries that lack their parents: this many, and a number for each entry. An entry
/// of a few kilobytes could name two thousand otherwise, each of which takes as much memory as a file.
const FREE_IMPLIED: usize = 1 << 16;
const IMPLIED_PER_ENTRY: usize = 8;

/// A tree that takes entries.
pub(super) struct TreeBuilder {
    pub(super) tree: Tree,
    pub(super) pending: PendingLinks,
    /// How many directories may still be made up.
    implied_left: usize,
}

/// What to do where a path leads nowhere.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Missing {
    /// Make directories.
    Create,
    /// Nothing.
    Leave,
}

impl TreeBuilder {
    pub(super) fn new() -> Self {
        let mut tree = Tree::new();
        tree.set_implied(Tree::ROOT, true);
        Self { tree, pending: PendingLinks::default(), implied_left: FREE_IMPLIED }
    }

    /// Adds an entry, and gives its node. The content of a regular file is to be filled in by the caller.
    pub(super) fn insert(&mut self, entry: Entry) -> Result<NodeId, BuildError> {
        let Entry { path, mut metadata, kind } = entry;
        self.implied_left += IMPLIED_PER_ENTRY;
        let problem = |problem| BuildError::Path { path: path.as_slice().into(), problem };
        let names = components(&path).map_err(problem)?;
        let Some((name, parents)) = names.split_last() else {
            if kind != EntryKind::Directory {
                return Err(problem(PathProblem::RootIsNoDirectory));
            }
            retain_storable(&mut metadata.xattrs, &path, FileType::Directory);
            return Ok(self.set_directory(Tree::ROOT, metadata));
        };
        let parent = self.walk(parents, Missing::Create).map_err(problem)?;
        let parent = parent.expect("missing directories are created");
        let kind = match kind {
            // A whiteout is its name, whatever its type: overlayfs's whiteouts share an inode, so tools that pack what it
            // leaves write hard links, often to files of a lower layer.
            EntryKind::HardLink(_) if name.starts_with(WHITEOUT_PREFIX) => EntryKind::Regular { size: 0 },
            kind => kind,
        };
        let node = match kind {
            EntryKind::Directory => {
                retain_storable(&mut metadata.xattrs, &path, FileType::Directory);
                return Ok(self.insert_directory(parent, name, metadata));
            }
            EntryKind::HardLink(target) => return self.insert_link(&path, parent, name, target),
            EntryKind::Regular { size } => Kind::Regular { size, chunks: Vec::new() },
            EntryKind::Symlink(target) => Kind::Symlink(target),
            EntryKind::CharDevice(number) => Kind::CharDevice(number),
            EntryKind::BlockDevice(number) => Kind::BlockDevice(number),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::Socket => Kind::Socket,
        };
        retain_storable(&mut metadata.xattrs, &path, node.file_type());
        let id = self.tree.add(Node { metadata, kind: node });
        self.name(parent, name, id);
        Ok(id)
    }

    /// The tree, with all hard links in place.
    pub(super) fn finish(mut self) -> Result<Tree, BuildError> {
        let pending = std::mem::take(&mut self.pending);
        pending.resolve(&mut self)?;
        Ok(self.tree)
    }

    /// The node at a path of a hard link's target; `None` if there is none. The last name is not followed.
    pub(super) fn find(&mut self, path: &[u8]) -> Result<Option<NodeId>, PathProblem> {
        let names = components(path)?;
        let Some((name, parents)) = names.split_last() else {
            return Ok(Some(Tree::ROOT));
        };
        let parent = self.walk(parents, Missing::Leave)?;
        Ok(parent.and_then(|parent| self.tree.entries(parent)?.get(*name).copied()))
    }

    /// Gives a node a name in a directory, in place of what had it.
    pub(super) fn name(&mut self, parent: NodeId, name: &[u8], id: NodeId) {
        let entries = self.tree.entries_mut(parent).expect("parents are directories");
        // Most names are new: the key is only allocated for these.
        match entries.get_mut(name) {
            Some(existing) => *existing = id,
            None => _ = entries.insert(name.into(), id),
        }
    }

    fn insert_directory(&mut self, parent: NodeId, name: &[u8], metadata: Metadata) -> NodeId {
        let existing = self.child(parent, name).filter(|&id| self.tree.entries(id).is_some());
        let id = existing.unwrap_or_else(|| self.add_directory(parent, name));
        self.set_directory(id, metadata)
    }

    fn set_directory(&mut self, id: NodeId, metadata: Metadata) -> NodeId {
        self.tree.node_mut(id).metadata = metadata;
        self.tree.set_implied(id, false);
        id
    }

    fn insert_link(
        &mut self,
        path: &[u8],
        parent: NodeId,
        name: &[u8],
        target: Vec<u8>,
    ) -> Result<NodeId, BuildError> {
        let found = self
            .find(&target)
            .map_err(|problem| BuildError::Path { path: target.as_slice().into(), problem })?;
        match found {
            Some(id) if self.tree.entries(id).is_some() => {
                Err(BuildError::LinkToDirectory { path: path.into(), target: target.as_slice().into() })
            }
            Some(id) => {
                self.name(parent, name, id);
                if self.pending.contains(id) {
                    self.pending.add_name(path, parent, name, id);
                }
                Ok(id)
            }
            None => {
                // The target may follow: until then, a placeholder.
                let id = self.tree.add(Node { metadata: Metadata::default(), kind: Kind::Fifo });
                self.name(parent, name, id);
                self.pending.add(path, parent, name, id, target);
                Ok(id)
            }
        }
    }

    fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.tree.entries(parent)?.get(name).copied()
    }

    /// A new directory in place of what has the name. It is implied: nothing says what its metadata is.
    fn add_directory(&mut self, parent: NodeId, name: &[u8]) -> NodeId {
        let metadata = Metadata { permissions: 0o755, ..Metadata::default() };
        let id = self.tree.add(Node { metadata, kind: Kind::Directory(Default::default()) });
        self.tree.set_implied(id, true);
        self.name(parent, name, id);
        id
    }

    /// A new directory for an entry that lacks its parent.
    fn make_up_directory(&mut self, parent: NodeId, name: &[u8]) -> Result<NodeId, PathProblem> {
        self.implied_left = self.implied_left.checked_sub(1).ok_or(PathProblem::TooManyMissing)?;
        Ok(self.add_directory(parent, name))
    }

    /// The directory that `names` lead to.
    fn walk(&mut self, names: &[&[u8]], missing: Missing) -> Result<Option<NodeId>, PathProblem> {
        let mut at = Tree::ROOT;
        for (depth, name) in names.iter().enumerate() {
            at = match self.child(at, name) {
                Some(id) if self.tree.entries(id).is_some() => id,
                Some(id) if matches!(self.tree.node(id).kind, Kind::Symlink(_)) => {
                    return self.walk_links(&names[..depth], &names[depth..], missing);
                }
                _ if missing == Missing::Leave => return Ok(None),
                _ => self.make_up_directory(at, name)?,
            };
        }
        Ok(Some(at))
    }

    /// The directory that `names` lead to from the directory that `parents` (which are directories) lead to, through
    /// symbolic links.
    fn walk_links(
        &mut self,
        parents: &[&[u8]],
        names: &[&[u8]],
        missing: Missing,
    ) -> Result<Option<NodeId>, PathProblem> {
        let mut stack = vec![Tree::ROOT];
        for name in parents {
            let at = stack.last().and_then(|&at| self.child(at, name));
            stack.push(at.expect("the parents were just walked through"));
        }
        let mut walk = Walk::new(stack, names);
        loop {
            match walk.advance(&self.tree).map_err(|TooManySteps| PathProblem::TooManyLinks)? {
                Stop::Arrived(id) => return Ok(Some(id)),
                Stop::Missing(_) if missing == Missing::Leave => return Ok(None),
                // A link's target was not looked at before.
                Stop::Missing(_) if walk.next_name().len() > NAME_LIMIT_BYTES => {
                    return Err(PathProblem::NameTooLong { length: walk.next_name().len() });
                }
                Stop::Missing(at) => _ = self.make_up_directory(at, walk.next_name())?,
            }
        }
    }
}

/// Drops extended attributes that neither RAFS nor Linux file systems store for a file of this type, as unpacking would.
fn retain_storable(xattrs: &mut Xattrs, path: &[u8], kind: FileType) {
    if xattrs.is_empty() {
        return;
    }
    xattrs.retain(|name, _| {
        let reason = match (xattr::split(name), xattr::fits(kind, name)) {
            (Some(_), true) => return true,
            (None, _) => "file systems do not store this kind",
            (_, false) => "only files and directories can have it",
        };
        let (path, name) = (String::from_utf8_lossy(path), String::from_utf8_lossy(name));
        tracing::warn!(%path, %name, "extended attribute left out: {reason}");
        false
    });
}

#[cfg(test)]
mod tests;
